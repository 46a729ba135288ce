"""The two clocks of a worker, with the counters and the time passed in."""

import math
import signal

import pytest
from world import World

from forgellm.errors import RequestCrashesWorker, WorkerDied
from forgellm.messages import Hello, Imported, Loading
from forgellm.states import WorkerState
from forgellm.supervisor.clocks import DUMP_S, WAKE_S, Pulse, WorkerClocks

LOG = "/logs/worker-1.log"
DUMP = [signal.SIGCONT, signal.SIGUSR1]


class Hearts:
    """The counters of a world's workers, looked at once a second. `stopped` beat no more, `idle` make no step."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stopped: set[int] = set()
        self.idle: set[int] = set()
        self.beats: dict[int, int] = {}
        self.steps: dict[int, int] = {}

    def run(self, seconds: float, every_s: float = 1.0) -> None:
        end = self.world.now + seconds
        while self.world.now + every_s <= end:
            self.world.wait(every_s)
            self.look()

    def look(self) -> None:
        for life in self.world.alive:
            self.beats[life] = self.beats.get(life, 0) + (life not in self.stopped)
            self.steps[life] = self.steps.get(life, 0) + (life not in self.stopped | self.idle)
        pulses = {life: Pulse(self.beats[life], self.steps[life], LOG) for life in self.world.alive}
        self.world.do(self.world.pool.pulse(pulses, self.world.now))


def test_a_heart_that_stops_is_a_hang_after_the_limit_and_not_before() -> None:
    clocks = WorkerClocks(hang_timeout_s=3.0)
    found = [clocks.look({1: Pulse(7, 7, LOG)}, {1: math.inf}, float(now)) for now in range(5)]
    assert [bool(verdicts) for verdicts in found] == [False, False, False, True, True]
    assert found[3] == {
        1: f"the worker was hung: no heartbeat for 3 s, and was killed; the stacks of its threads are in {LOG}"
    }


def test_without_a_step_a_worker_is_stuck_only_while_it_has_something_to_do() -> None:
    clocks = WorkerClocks(hang_timeout_s=15.0)
    limits = [2.0, math.inf, 2.0, 2.0, 2.0]  # idle at 1: the clock starts anew
    found = [clocks.look({1: Pulse(now, 7, LOG)}, {1: limit}, float(now)) for now, limit in enumerate(limits)]
    assert [bool(verdicts) for verdicts in found] == [False, False, False, True, True]
    assert "alive, but no progress for 2 s" in found[3][1]


def test_a_clock_of_zero_seconds_is_off() -> None:
    clocks = WorkerClocks(hang_timeout_s=0.0)
    assert [clocks.look({1: Pulse(7, 7, LOG)}, {1: math.inf}, float(now)) for now in range(100)] == [{}] * 100
    world = World(progress_timeout_s=0.0, hang_timeout_s=0.0)
    life = world.loaded()
    world.ask()
    hearts = Hearts(world)
    hearts.stopped.add(life)
    hearts.run(1000)
    assert world.signals(life) == []


def test_a_hung_worker_writes_its_stacks_and_is_killed_a_second_later() -> None:
    world = World()
    life = world.loaded()
    hearts = Hearts(world)
    hearts.run(20)
    hearts.stopped.add(life)
    hearts.run(14)
    assert world.signals(life) == []
    hearts.run(1)
    assert world.signals(life) == [signal.SIGCONT]
    world.wait(WAKE_S)
    assert world.signals(life) == DUMP
    world.wait(DUMP_S)
    assert world.signals(life) == [*DUMP, signal.SIGKILL]
    world.die(life)
    assert world.worker().state is WorkerState.STARTING
    assert "no heartbeat for 15 s" in world.worker().reason
    assert LOG in world.worker().reason
    assert world.worker().restarts == 1


def test_a_worker_that_is_about_to_be_killed_gets_no_request() -> None:
    world = World()
    life = world.loaded()
    hearts = Hearts(world)
    hearts.stopped.add(life)
    hearts.look()
    hearts.run(15)
    request = world.ask()
    assert world.resumed(request) == []
    world.die(life)
    world.ready(world.alive[-1])
    assert world.resumed(request) == [(world.alive[-1], ())]


def test_a_worker_that_is_killed_for_hanging_counts_as_a_crash() -> None:
    """A SIGKILL from outside would blame nobody: two hangs are enough to quarantine a request."""
    world = World()
    world.loaded()
    request, neighbour = world.ask(), world.ask()
    for _ in range(2):
        (life,) = world.alive
        world.ready(life)
        hearts = Hearts(world)
        hearts.look()
        hearts.idle.add(life)
        hearts.run(60)
        world.wait(WAKE_S)
        assert world.signals(life) == DUMP
        world.die(life)
    assert isinstance(world.news(request), RequestCrashesWorker)
    assert "no progress for 60 s" in str(world.news(request))
    assert world.delivered(neighbour) == []


def test_progress_keeps_a_long_prefill_alive_for_ever() -> None:
    world = World()
    life = world.loaded()
    world.ask()
    Hearts(world).run(1000)
    assert world.signals(life) == []


def test_the_progress_limit_of_a_model_overrides_the_setting() -> None:
    world = World()
    life = world.loaded(progress_timeout_s=5.0)
    world.ask()
    hearts = Hearts(world)
    hearts.look()
    hearts.idle.add(life)
    hearts.run(5)
    world.wait(WAKE_S)
    assert world.signals(life) == DUMP


def test_a_load_without_progress_fails_with_the_reason() -> None:
    world = World()
    world.load()
    (life,) = world.alive
    world.say(life, Hello(1), Imported(), Loading(0.3, "reading weights"))
    hearts = Hearts(world)
    hearts.look()
    hearts.idle.add(life)
    hearts.run(119)
    assert world.signals(life) == []
    hearts.run(1)
    world.wait(WAKE_S)
    assert world.signals(life) == DUMP
    world.die(life)
    failure = world.news("load")
    assert isinstance(failure, WorkerDied)
    assert "no progress for 120 s" in str(failure)
    assert LOG in str(failure)
    assert world.worker().state is WorkerState.FAILED


def test_a_worker_without_a_word_is_not_watched_yet() -> None:
    """Its counters stand still until its interpreter is up; hello_timeout_s is what limits that."""
    world = World(hello_timeout_s=1000.0)
    world.load()
    hearts = Hearts(world)
    hearts.stopped.update(world.alive)
    hearts.run(500)
    assert world.signals(world.alive[0]) == []


@pytest.mark.parametrize("gap_s", [6.0, 3600.0])
def test_chaos_081_after_the_machine_slept_the_clocks_start_anew(gap_s: float) -> None:
    """The counters stood still with everything else; nobody hangs."""
    world = World(progress_timeout_s=10.0)
    life = world.loaded()
    world.ask()
    hearts = Hearts(world)
    hearts.run(10)
    hearts.stopped.add(life)
    hearts.run(9)
    world.now += gap_s
    hearts.look()
    hearts.run(9)
    assert world.signals(life) == []
    hearts.run(1)
    world.wait(WAKE_S)
    assert world.signals(life) == DUMP


def test_a_spare_that_hangs_is_replaced() -> None:
    """Or the next load would be given to it."""
    world = World(spare=True)
    world.do(world.pool.tick(world.now))
    (life,) = world.alive
    world.say(life, Hello(1), Imported())
    hearts = Hearts(world)
    hearts.stopped.add(life)
    hearts.look()
    hearts.run(15)
    world.wait(WAKE_S)
    assert world.signals(life) == DUMP
    world.load()
    assert world.alive[-1] != life
    assert world.commands(life) == []
    hearts.run(2)
    assert signal.SIGKILL in world.signals(life)
    world.die(life)
    assert life not in world.alive
