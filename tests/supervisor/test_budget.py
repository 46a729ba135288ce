"""Who may have how much memory: estimates, victims, admission, limits; with the numbers and the time passed in."""

import signal
from pathlib import Path
from typing import Any

import pytest
from world import World

from forgellm.config import Settings
from forgellm.errors import InsufficientMemory, ModelFailed
from forgellm.messages import EngineOptions, Hello, Imported, Loading, ModelSource, Ready
from forgellm.states import WorkerState
from forgellm.supervisor.budget import RUNTIME_BYTES, Candidate, choose_victims, estimate
from forgellm.supervisor.effects import Loaded, Signal, Unloaded
from forgellm.supervisor.memory import OomWatch, cgroup_limit_bytes, oom_kills
from forgellm.supervisor.slots import LoadOrder
from model_info import INFO

S = WorkerState
GB = 1_000_000_000


def sized(name: str, weights: int, replicas: int = 1, options: EngineOptions | None = None, **policy: Any) -> LoadOrder:
    source = ModelSource(name=name, kind="echo", weights_bytes=weights)
    return LoadOrder(source=source, options=options or EngineOptions(), replicas=replicas, **policy)


class Machine(World):
    """A world with a budget of 100 bytes unless told otherwise, where loads have sizes and nothing else."""

    def __init__(self, budget: int = 100, **settings: Any) -> None:
        super().__init__(memory_budget_bytes=budget, **{"memory_soft_limit": 1.0, **settings})

    def order(self, name: str, weights: int, ticket: str | None = None, **policy: Any) -> str:
        """Order a load; returns its ticket."""
        ticket = ticket or f"load {name}"
        self.do(self.pool.load(sized(name, weights, **policy), ticket, self.now))
        return ticket

    def hold(self, name: str, weights: int, **policy: Any) -> int:
        """Load a model of that size, and let it be ready; returns its last life."""
        before = set(self.alive)
        self.order(name, weights, **policy)
        lives = [life for life in self.alive if life not in before]
        for life in lives:
            self.ready(life)
        return lives[-1]

    def measure(self, **sizes: int) -> None:
        """A sample: each model's first worker is charged so much."""
        lives = {self.worker(name).life: size for name, size in sizes.items()}
        self.do(self.pool.memory(lives, self.now))

    def states(self) -> dict[str, WorkerState]:
        return {model.name: model.state for model in self.pool.status().models}


# What a load needs


def test_an_estimate_is_the_weights_the_kv_cache_the_process_and_a_tenth_for_loading() -> None:
    source = ModelSource(name="m", kind="folder", weights_bytes=1000, parameters=2000, kv_bytes_per_token=3)
    need = estimate(LoadOrder(source=source, options=EngineOptions(layout="native")), 4096)
    assert (need.weights_bytes, need.kv_bytes, need.transient_bytes) == (1000, 3 * 4096, 100)
    assert need.total_bytes == need.lasting_bytes + 100 == 1000 + 3 * 4096 + RUNTIME_BYTES + 100


def test_dequantised_weights_count_four_bytes_twice_the_kv_and_their_files_while_loading() -> None:
    source = ModelSource(name="m", kind="gguf", weights_bytes=1000, parameters=2000, kv_bytes_per_token=3)
    need = estimate(LoadOrder(source=source, options=EngineOptions(layout="f32")), 10)
    assert (need.weights_bytes, need.kv_bytes, need.transient_bytes) == (8000, 60, 1000)
    auto = EngineOptions(layout="auto", memory_budget_bytes=8000)
    assert estimate(LoadOrder(source=source, options=auto), 10) == need
    tight = EngineOptions(layout="auto", memory_budget_bytes=7999)
    assert estimate(LoadOrder(source=source, options=tight), 10).weights_bytes == 1000


@pytest.mark.parametrize("cap", ["context_length", "max_kv_size"])
def test_no_more_kv_is_planned_than_the_order_allows(cap: str) -> None:
    source = ModelSource(name="m", kind="folder", weights_bytes=1, kv_bytes_per_token=3)
    assert estimate(LoadOrder(source=source, options=EngineOptions(**{cap: 7})), 4096).kv_bytes == 21  # type: ignore[arg-type]


# Who goes


def candidate(name: str, size: int = 10, priority: int = 0, idle_s: float = 0.0, load_s: float = 1.0) -> Candidate:
    return Candidate(name, priority, idle_s, load_s, size)


def test_victims_go_by_priority_then_idle_time_then_reload_cost_per_byte() -> None:
    a, b = candidate("a", priority=1, idle_s=9), candidate("b", priority=0)
    assert choose_victims([a, b], 1) == ("b",)
    a, b = candidate("a", idle_s=5), candidate("b", idle_s=50)
    assert choose_victims([a, b], 1) == ("b",)
    a, b = candidate("a", load_s=2.0, size=10), candidate("b", load_s=3.0, size=30)
    assert choose_victims([a, b], 1) == ("b",)


def test_no_model_goes_needlessly() -> None:
    small, large = candidate("small", 10, idle_s=50), candidate("large", 100, idle_s=5)
    assert choose_victims([small, large], 50) == ("large",)
    assert choose_victims([small, large], 105) == ("small", "large")
    assert choose_victims([candidate("empty", 0, idle_s=99), large], 50) == ("large",)


def test_if_all_together_are_not_enough_nobody_goes() -> None:
    assert choose_victims([candidate("a", 10), candidate("b", 10)], 21) is None


# Admission


def test_without_a_budget_everything_fits() -> None:
    machine = Machine(budget=0)
    machine.hold("a", 10**15)
    plan = machine.pool.plan(sized("b", 10**15), machine.now)
    assert (plan.fits, plan.budget_bytes) == (True, None)


def test_a_load_larger_than_the_budget_is_refused_before_a_spawn_and_evicts_nothing() -> None:
    machine = Machine()
    machine.hold("a", 50)
    news = machine.order("b", 95)
    error = machine.news(news)
    assert isinstance(error, InsufficientMemory)
    assert "b needs" in error.message
    assert "the whole budget" in error.message
    assert machine.states() == {"a": S.READY}
    assert machine.pool.status().current == "a"


def test_of_two_loads_for_the_last_memory_one_wins_and_the_other_is_refused() -> None:
    """The first is still loading: it is in use by whoever waits for it, so nothing can be evicted for the second."""
    machine = Machine()
    machine.order("a", 60)
    machine.order("b", 60)
    (life,) = machine.alive
    assert isinstance(machine.news("load b"), InsufficientMemory)
    machine.ready(life)
    assert isinstance(machine.news("load a"), Loaded)


def test_a_load_that_failed_gives_its_reservation_back() -> None:
    machine = Machine()
    machine.order("a", 60)
    machine.fail_load(machine.alive[0])
    machine.order("b", 60)
    machine.ready(machine.alive[0])
    assert isinstance(machine.news("load b"), Loaded)


def test_what_the_system_charges_counts_if_it_is_more_than_the_estimate() -> None:
    machine = Machine()
    machine.hold("a", 10, pin=True)
    machine.measure(a=60)
    assert isinstance(machine.news(machine.order("b", 40)), InsufficientMemory)


def test_every_replica_counts() -> None:
    machine = Machine()
    assert isinstance(machine.news(machine.order("a", 40, replicas=3)), InsufficientMemory)
    assert machine.pool.plan(sized("a", 40, replicas=2), machine.now).need.total_bytes == 88


def test_another_replica_is_admitted_like_a_load() -> None:
    machine = Machine()
    machine.hold("a", 40)
    assert machine.pool.plan(sized("a", 40, replicas=3), machine.now).need.weights_bytes == 80
    refused = machine.order("a", 40, ticket="three", replicas=3)
    assert isinstance(machine.news(refused), InsufficientMemory)
    assert machine.states() == {"a": S.READY}


def test_the_spare_counts_unless_the_load_would_take_it() -> None:
    machine = Machine(spare=True)
    machine.do(machine.pool.tick(machine.now))
    (spare,) = machine.alive  # of the mlx engine, the first guess
    machine.do(machine.pool.memory({spare: 30}, machine.now))
    assert machine.pool.plan(sized("a", 10), machine.now).reserved_bytes == 30
    mlx = LoadOrder(source=ModelSource(name="b", kind="folder", weights_bytes=10), options=EngineOptions())
    assert machine.pool.plan(mlx, machine.now).reserved_bytes == 0


def test_a_refusal_names_the_need_the_budget_and_who_holds_what() -> None:
    machine = Machine(budget=10 * GB)
    machine.hold("pinned", 3 * GB, pin=True)
    machine.hold("busy", 3 * GB)
    machine.ask("busy")
    machine.hold("idle", 1 * GB)
    machine.order("big", 8 * GB)
    error = machine.news("load big")
    for words in ("big needs 8.8 GB", "10.0 GB", "pinned 3.0 GB (pinned)", "busy 3.0 GB (busy)", "idle 1.0 GB (idle)"):
        assert words in error.message
    assert S.STOPPING not in machine.states().values()


# Making room


def test_a_load_waits_for_the_memory_of_an_idle_model_and_then_starts() -> None:
    machine = Machine()
    old = machine.hold("a", 60)
    machine.order("b", 60)
    assert machine.states() == {"a": S.STOPPING, "b": S.WAITING}
    assert machine.commands(old)[-1] == "Unload"
    asked = machine.ask("b")
    assert machine.delivered(asked) == []
    machine.leave(old)
    assert machine.states() == {"b": S.STARTING}
    machine.ready(machine.alive[0])
    assert isinstance(machine.news("load b"), Loaded)
    assert machine.life_of(asked) == machine.alive[0]


@pytest.mark.parametrize("kept", ["pinned", "queued", "running", "loading"])
def test_only_idle_unpinned_models_are_evicted(kept: str) -> None:
    machine = Machine()
    if kept == "loading":
        machine.order("a", 60)
    else:
        machine.hold("a", 60, pin=kept == "pinned", options=EngineOptions(max_batch=1))
    if kept in {"running", "queued"}:
        machine.ask("a")
        machine.ask("a")
    machine.order("b", 60)
    assert isinstance(machine.news("load b"), InsufficientMemory)
    assert set(machine.states()) == {"a"}


def test_the_model_that_was_idle_for_longest_goes_unless_its_priority_is_higher() -> None:
    for priority, victim in ((0, "old"), (1, "new")):
        machine = Machine()
        machine.hold("old", 40, priority=priority)
        machine.now += 60
        machine.hold("new", 40)
        machine.now += 60
        assert machine.pool.plan(sized("c", 40), machine.now).would_evict == (victim,)
        machine.order("c", 40)
        assert [name for name, state in machine.states().items() if state is S.STOPPING] == [victim]


def test_a_plan_says_what_a_load_would_do_and_changes_nothing() -> None:
    machine = Machine()
    machine.hold("a", 60)
    before = machine.pool.status()
    plan = machine.pool.plan(sized("b", 60), machine.now)
    assert (plan.fits, plan.must_wait, plan.would_evict) == (True, True, ("a",))
    assert (plan.need.total_bytes, plan.budget_bytes, plan.reserved_bytes) == (66, 100, 60)
    assert machine.pool.status() == before
    assert machine.pool.plan(sized("a", 60), machine.now).need.total_bytes == 0


def test_two_loads_that_wait_share_what_comes_back() -> None:
    """The second must not count on memory that the first is waiting for."""
    machine = Machine()
    old = machine.hold("a", 90)
    machine.order("b", 40)
    machine.order("c", 40)
    machine.order("d", 40)
    assert isinstance(machine.news("load d"), InsufficientMemory)
    machine.leave(old)
    assert machine.states() == {"b": S.STARTING, "c": S.STARTING}


def test_a_waiting_load_can_be_unloaded() -> None:
    machine = Machine()
    old = machine.hold("a", 60)
    machine.order("b", 60)
    machine.unload("b")
    assert isinstance(machine.news("unload"), Unloaded)
    machine.leave(old)
    assert machine.states() == {}


def test_a_waiting_load_that_finds_too_little_in_the_end_is_refused() -> None:
    """Another worker has grown meanwhile; nothing is left that could go."""
    machine = Machine()
    machine.hold("pinned", 20, pin=True)
    old = machine.hold("a", 60)
    machine.order("b", 60)
    waits = machine.ask("b")
    machine.measure(pinned=50)
    assert machine.states()["b"] is S.WAITING
    machine.leave(old)
    assert isinstance(machine.news("load b"), InsufficientMemory)
    assert len(machine.delivered(waits)) == 1
    assert machine.model("b").error_code == "insufficient_memory"


def test_a_waiting_load_evicts_once_more_if_what_came_back_is_not_enough() -> None:
    machine = Machine()
    other = machine.hold("other", 20)
    machine.now += 60
    machine.hold("pinned", 1, pin=True)
    machine.now -= 30
    old = machine.hold("a", 60, priority=-1)
    machine.order("b", 60)
    machine.measure(pinned=30)
    machine.leave(old)
    assert machine.states()["other"] is S.STOPPING
    machine.leave(other)
    assert machine.states()["b"] is S.STARTING


def test_a_model_that_replaces_itself_needs_no_room_beside_itself() -> None:
    machine = Machine()
    old = machine.hold("a", 60)
    machine.order("a", 60, ticket="other", options=EngineOptions(context_length=8))
    assert machine.delivered("other") == []
    assert isinstance(machine.news(machine.order("b", 60)), InsufficientMemory)
    machine.leave(old)
    machine.ready(machine.alive[0])
    assert isinstance(machine.news("other"), Loaded)


def test_a_failed_model_is_not_tried_again_for_a_request_while_there_is_no_room() -> None:
    machine = Machine(crash_budget=1)
    life = machine.hold("a", 60)
    machine.die(life, code=-signal.SIGSEGV)
    machine.hold("b", 60, pin=True)
    machine.now += 1000
    assert isinstance(machine.news(machine.ask("a")), InsufficientMemory)
    assert machine.states()["a"] is S.FAILED


# Limits


def test_above_the_soft_limit_workers_are_told_to_drop_their_caches_but_not_all_the_time() -> None:
    machine = Machine(memory_soft_limit=0.5)
    life = machine.hold("a", 10)
    machine.measure(a=50)
    assert machine.commands(life) == ["Load"]
    machine.measure(a=51)
    machine.measure(a=51)
    assert machine.commands(life) == ["Load", "TrimCache"]
    assert machine.pool.is_memory_tight
    machine.now += 5
    machine.measure(a=51)
    assert machine.commands(life).count("TrimCache") == 2


def test_above_the_soft_limit_a_load_is_refused_unless_it_makes_room() -> None:
    machine = Machine(memory_soft_limit=0.5)
    machine.hold("a", 10, pin=True)
    machine.measure(a=60)
    assert isinstance(machine.news(machine.order("b", 10)), InsufficientMemory)
    machine = Machine(memory_soft_limit=0.5)
    machine.hold("a", 10)
    machine.measure(a=60)
    assert machine.pool.plan(sized("b", 10), machine.now).would_evict == ("a",)


def test_above_the_soft_limit_no_spare_is_started() -> None:
    machine = Machine(memory_soft_limit=0.5, spare=True)
    machine.hold("a", 10)
    machine.measure(a=60)
    spares = len(machine.alive)
    machine.do(machine.pool.tick(machine.now))
    assert len(machine.alive) == spares


def test_the_runaway_loses_its_newest_request_then_its_life_and_nobody_else_does() -> None:
    machine = Machine()
    quiet = machine.hold("quiet", 60)
    neighbour = machine.ask("quiet")
    runaway = machine.hold("runaway", 20)
    first, newest = machine.ask("runaway"), machine.ask("runaway")
    machine.measure(quiet=60, runaway=45)
    assert isinstance(machine.news(newest), InsufficientMemory)
    assert machine.commands(runaway)[-2:] == ["Abort", "TrimCache"]
    assert machine.signals(runaway) == []
    machine.measure(quiet=60, runaway=50)
    assert machine.signals(runaway) == [signal.SIGKILL]
    machine.die(runaway)
    assert "memory limit" in machine.worker("runaway").reason
    machine.ready(machine.alive[-1])
    assert machine.life_of(first) == runaway
    assert len(machine.resumed(first)) == 2
    assert machine.delivered(neighbour) == []
    assert machine.signals(quiet) == []
    assert machine.commands(quiet) == ["Load", "Generate", "TrimCache"]


def test_a_worker_that_shrinks_after_losing_a_request_lives_and_soon_takes_requests_again() -> None:
    machine = Machine()
    life = machine.hold("a", 20)
    machine.ask("a")
    machine.measure(a=101)
    late = machine.ask("a")
    machine.measure(a=90)
    assert machine.life_of(late) is None
    machine.now += 2
    machine.measure(a=90)
    assert machine.life_of(late) == life
    assert machine.signals(life) == []


def test_a_worker_that_grows_above_the_limit_again_at_once_is_killed_and_loses_no_second_request() -> None:
    """In between another one had dropped its caches, so that all were below the limit."""
    machine = Machine()
    quiet, runaway = machine.hold("quiet", 10), machine.hold("a", 20)
    first, second = machine.ask("a"), machine.ask("a")
    machine.measure(a=71, quiet=30)
    assert [len(machine.delivered(each)) for each in (first, second)] == [0, 1]
    machine.now += 0.25
    machine.measure(a=72, quiet=10)
    machine.now += 0.25
    machine.measure(a=91, quiet=10)
    assert [len(machine.delivered(each)) for each in (first, second)] == [0, 1]
    assert (machine.signals(runaway), machine.signals(quiet)) == ([signal.SIGKILL], [])


def test_a_worker_that_neither_grows_nor_shrinks_loses_one_request_after_the_other_and_then_its_life() -> None:
    machine = Machine()
    life = machine.hold("a", 20)
    asked = [machine.ask("a"), machine.ask("a")]
    machine.measure(a=101)
    machine.measure(a=101)
    assert [len(machine.delivered(each)) for each in asked] == [0, 1]
    machine.now += 2
    machine.measure(a=101)
    assert [len(machine.delivered(each)) for each in asked] == [1, 1]
    machine.now += 2
    machine.measure(a=101)
    assert machine.signals(life) == [signal.SIGKILL]
    machine.measure(a=101)
    assert machine.signals(life) == [signal.SIGKILL]


def test_a_request_that_has_ended_and_still_runs_does_not_end_twice() -> None:
    """Its deadline has passed, its worker has not let go of it yet: the next older one is the newest."""
    machine = Machine(request_timeout_s=5.0)
    machine.hold("a", 20)
    late = machine.ask("a")
    machine.wait(6)
    assert len(machine.delivered(late)) == 1
    machine.measure(a=101)
    assert len(machine.delivered(late)) == 1


def test_a_worker_that_outgrows_the_budget_while_it_loads_has_failed() -> None:
    machine = Machine()
    machine.order("a", 20)
    (life,) = machine.alive
    machine.say(life, Hello(1), Imported(), Loading(0.5, "reading weights"))
    machine.measure(a=101)
    machine.measure(a=120)
    assert machine.signals(life) == [signal.SIGKILL]
    machine.die(life)
    assert isinstance(machine.news("load a"), InsufficientMemory)
    assert machine.states() == {"a": S.FAILED}


def test_within_its_estimate_a_worker_is_nobody_to_blame() -> None:
    machine = Machine(memory_hard_limit=0.5)
    life = machine.hold("a", 60)
    machine.ask("a")
    machine.measure(a=60)
    assert not [e for e in machine.effects if isinstance(e, Signal)]
    assert machine.commands(life) == ["Load", "Generate"]


def test_an_estimate_is_that_of_what_a_worker_was_started_for_whatever_its_model_is_loaded_as_next() -> None:
    machine = Machine(memory_hard_limit=0.5)
    source = ModelSource(name="a", kind="echo", kv_bytes_per_token=1)
    large, small = (LoadOrder(source=source, options=EngineOptions(context_length=size)) for size in (60, 10))
    machine.do(machine.pool.load(large, "load", machine.now))
    (life,) = machine.alive
    machine.ready(life)
    machine.do(machine.pool.reload(Settings(spare=False, memory_hard_limit=0.5), 100, [small], machine.now))
    assert [worker.memory.estimate_bytes for worker in machine.model("a").workers] == [60, 10]
    machine.measure(a=60)
    assert "TrimCache" not in machine.commands(life)


# Recycling


def test_a_worker_is_recycled_after_so_many_requests_once_it_is_idle() -> None:
    machine = Machine(recycle_after_requests=2)
    old = machine.hold("a", 10)
    one, two = machine.ask("a"), machine.ask("a")
    machine.token(old, one, finish="stop")
    machine.token(old, two)
    assert machine.states() == {"a": S.READY}
    machine.token(old, two, finish="stop")
    assert machine.commands(old)[-1] == "Unload"
    waits = machine.ask("a")
    assert machine.delivered(waits) == []
    machine.leave(old)
    (new,) = machine.alive
    machine.ready(new)
    assert machine.life_of(waits) == new
    assert machine.worker("a").restarts == 0


def test_a_load_during_recycling_is_answered_when_the_fresh_worker_is_ready() -> None:
    machine = Machine(recycle_after_requests=1)
    old = machine.hold("a", 10)
    machine.token(old, machine.ask("a"), finish="stop")
    again = machine.order("a", 10, ticket="again")
    assert machine.delivered(again) == []
    machine.leave(old)
    machine.ready(machine.alive[0])
    assert isinstance(machine.news(again), Loaded)


def test_a_worker_that_has_grown_beyond_the_factor_is_recycled() -> None:
    machine = Machine(recycle_growth_factor=2.0)
    old = machine.hold("a", 10)
    machine.measure(a=10)
    machine.measure(a=20)
    assert machine.states() == {"a": S.READY}
    machine.measure(a=21)
    machine.leave(old)
    assert machine.states() == {"a": S.STARTING}


def test_one_replica_after_the_other_is_recycled() -> None:
    machine = Machine(recycle_growth_factor=2.0)
    machine.hold("a", 10, replicas=2)
    lives = list(machine.alive)
    machine.do(machine.pool.memory(dict.fromkeys(lives, 10), machine.now))
    machine.do(machine.pool.memory(dict.fromkeys(lives, 30), machine.now))
    assert [machine.commands(life)[-1] for life in lives] == ["Unload", "Load"]


def test_an_unload_during_recycling_is_an_unload() -> None:
    machine = Machine(recycle_after_requests=1)
    old = machine.hold("a", 10)
    machine.token(old, machine.ask("a"), finish="stop")
    machine.unload("a")
    machine.leave(old)
    assert isinstance(machine.news("unload"), Unloaded)
    assert machine.alive == []


# Deaths


def test_a_sigkill_of_a_worker_that_held_most_of_the_budget_is_suspected_memory() -> None:
    machine = Machine()
    for held, is_suspected in ((91, True), (90, False)):
        life = machine.hold("a", 10) if not machine.alive else machine.alive[-1]
        machine.measure(a=held)
        machine.die(life)
        assert ("suspected memory" in machine.worker("a").reason) is is_suspected
        machine.wait(1)
        machine.say(machine.alive[-1], Hello(1), Imported(), Ready(INFO, 1, 1))


def test_suspected_memory_uses_up_the_crash_budget_but_ends_no_request_before() -> None:
    """A model too large for the machine must not spin for ever; but a large one may also just have been killed."""
    machine = Machine(crash_budget=3, backoff_max_s=0.0)
    machine.hold("a", 10)
    request = machine.ask("a")
    for _ in range(3):
        assert machine.delivered(request) == []
        machine.measure(a=91)
        machine.die(machine.alive[-1])
        if machine.alive:
            machine.say(machine.alive[-1], Hello(1), Imported(), Ready(INFO, 1, 1))
    assert machine.states()["a"] is S.FAILED
    assert isinstance(machine.news(request), ModelFailed)


def test_an_oom_kill_is_told_from_any_other_sigkill_by_the_count_of_the_cgroup(tmp_path: Path) -> None:
    counts = iter([3, 3, 4, 4])
    watch = OomWatch(lambda: next(counts))
    assert watch.explain(-signal.SIGKILL) == ""
    assert watch.explain(-signal.SIGSEGV) == ""
    assert "out of memory" in watch.explain(-signal.SIGKILL)
    assert watch.explain(-signal.SIGKILL) == ""


def test_limits_and_kills_of_the_cgroup_are_read_and_their_absence_is_no_error(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    inner = root / "pod" / "box"
    inner.mkdir(parents=True)
    own.write_text("0::/pod/box\n")
    assert (cgroup_limit_bytes(root, own), oom_kills(root, own)) == (float("inf"), 0)
    (inner / "memory.max").write_text("max\n")
    (root / "pod" / "memory.max").write_text("5000\n")
    (inner / "memory.events").write_text("oom 2\noom_kill 7\n")
    assert (cgroup_limit_bytes(root, own), oom_kills(root, own)) == (5000, 7)
    assert (cgroup_limit_bytes(root, tmp_path / "missing"), oom_kills(root, tmp_path / "missing")) == (float("inf"), 0)


def test_limits_and_kills_of_an_older_systems_cgroup_are_read_where_it_has_the_memory(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    inner = root / "memory" / "pod" / "box"
    inner.mkdir(parents=True)
    own.write_text("8:pids:/pod\n4:memory:/pod/box\n0::/\n")
    (root / "memory.max").write_text("1\n")
    (inner / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert (cgroup_limit_bytes(root, own), oom_kills(root, own)) == (float("inf"), 0)
    (root / "memory" / "pod" / "memory.limit_in_bytes").write_text("5000\n")
    (inner / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert (cgroup_limit_bytes(root, own), oom_kills(root, own)) == (5000, 7)
