"""Workers that hang or get stuck, for real: the dump of their stacks, their end, and what becomes of their requests."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pools import DEADLINE_S, StartPool, wait_until

from forgellm import Generation, Supervisor
from forgellm.errors import RequestCrashesWorker, RequestTimeout, ShuttingDown, WorkerDied
from forgellm.messages import Event, Timeouts
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus, loop, process
from forgellm.supervisor.channel import Channel
from forgellm.supervisor.effects import Effect
from invariants import bystander

pytestmark = [pytest.mark.process, pytest.mark.chaos]

LIMIT_S = 2.0
GRACE_S = 5.0
LIMITS = {"hang_timeout_s": LIMIT_S, "progress_timeout_s": LIMIT_S, "load_stall_timeout_s": LIMIT_S}
TEXT = " ".join(map(str, range(2000)))


def worker(pool: Supervisor, model: str = "e") -> WorkerStatus:
    found = pool.status().model(model)
    assert found is not None
    return found.workers[0]


def stop(pool: Supervisor, number: int, model: str = "e") -> None:
    pid = worker(pool, model).pid
    assert pid is not None
    os.kill(pid, number)


def dump_named_in(words: str) -> str:
    """The stacks that a status or an error speaks of."""
    assert "the stacks of its threads are in " in words
    path = words.partition("the stacks of its threads are in ")[2].partition(".log")[0] + ".log"
    return Path(path).read_text("utf-8")


OTHER = {"tokens_per_s": 20.0}


def test_chaos_016_a_stopped_worker_is_killed_at_the_limit_and_its_stream_goes_on(start_pool: StartPool) -> None:
    """SIGSTOP; it is woken to write its stacks, and killed all the same."""
    pool = start_pool(LIMITS, e={"tokens_per_s": 50.0}, other=OTHER)
    pool.load("e")
    with bystander(pool, "other"):
        text = " ".join(map(str, range(150)))
        generation = pool.generate("e", text)
        found = next(generation).text
        stop(pool, signal.SIGSTOP)
        took_s = wait_until(lambda: worker(pool).restarts == 1)
        assert LIMIT_S - 1 < took_s < LIMIT_S + GRACE_S
        assert "no heartbeat" in worker(pool).reason
        assert "in _turn" in dump_named_in(worker(pool).reason)
        assert found + generation.result().text == text


def test_chaos_016_a_worker_that_goes_on_before_the_limit_is_left_alone(start_pool: StartPool) -> None:
    pool = start_pool({**LIMITS, "hang_timeout_s": 5.0, "progress_timeout_s": 5.0}, e={"tokens_per_s": 50.0})
    pool.load("e")
    text = " ".join(map(str, range(50)))
    generation = pool.generate("e", text)
    found = next(generation).text
    stop(pool, signal.SIGSTOP)
    threading.Event().wait(2.5)
    stop(pool, signal.SIGCONT)
    assert found + generation.result().text == text
    assert worker(pool).restarts == 0


def test_chaos_016_an_idle_worker_that_is_stopped_is_replaced(start_pool: StartPool) -> None:
    pool = start_pool(LIMITS, e={})
    pool.load("e")
    stop(pool, signal.SIGSTOP)
    assert wait_until(lambda: worker(pool).restarts == 1) < LIMIT_S + GRACE_S
    assert pool.generate("e", "still here").result().text == "still here"


def test_chaos_017_native_code_that_holds_the_gil_stops_the_heart(start_pool: StartPool) -> None:
    hangs_twice(start_pool, "gil", "no heartbeat")


def test_chaos_018_native_code_without_the_gil_makes_no_progress(start_pool: StartPool) -> None:
    hangs_twice(start_pool, "native", "alive, but no progress")


def test_chaos_019_an_endless_python_loop_makes_no_progress(start_pool: StartPool) -> None:
    """As in a chat template whose loops are nested too deep."""
    hangs_twice(start_pool, "python", "alive, but no progress")


def hangs_twice(start_pool: StartPool, how: str, clock: str) -> None:
    """Each hang ends within its limit + 5 s, with all stacks in the log and the log named in the status; the request
    is quarantined the second time."""
    pool = start_pool(LIMITS, e={"hang": how, "tokens_per_s": 50.0}, other=OTHER)
    pool.load("e")
    with bystander(pool, "other"):
        began = time.monotonic()
        poison = pool.generate("e", "hang")
        wait_until(lambda: worker(pool).restarts == 1)
        assert time.monotonic() - began < LIMIT_S + GRACE_S
        assert clock in worker(pool).reason
        assert "in _hang" in dump_named_in(worker(pool).reason)
        with pytest.raises(RequestCrashesWorker, match=clock) as caught:
            poison.result()
        assert time.monotonic() - began < 2 * (LIMIT_S + GRACE_S)
        assert "in _hang" in dump_named_in(str(caught.value))
        assert pool.generate("e", "still here").result().text == "still here"


def test_a_load_that_hangs_fails_with_the_reason(start_pool: StartPool) -> None:
    pool = start_pool(LIMITS, e={"hang": "native", "hang_in_load": True})
    began = time.monotonic()
    with pytest.raises(WorkerDied, match="alive, but no progress") as caught:
        pool.load("e")
    assert time.monotonic() - began < LIMIT_S + GRACE_S
    assert "in _hang" in dump_named_in(str(caught.value))
    assert worker(pool).state is WorkerState.FAILED


def test_a_long_prefill_with_progress_is_not_touched(start_pool: StartPool) -> None:
    """Five times the limit; by default 100 s of prefill and more."""
    pool = start_pool({**LIMITS, "progress_timeout_s": 1.0}, e={"prefill_s": 5.0})
    pool.load("e")
    assert pool.generate("e", "one two").result().text == "one two"
    assert worker(pool).restarts == 0


def test_chaos_036_a_stalled_reader_holds_its_worker_back_and_kills_nobody(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker waits for room in its pipe: it makes no step, but it is not hung."""
    go_on = threading.Event()
    go_on.set()
    receive = Channel.receive

    def stalled(channel: Channel) -> Event:
        go_on.wait(DEADLINE_S)
        return receive(channel)

    monkeypatch.setattr(Channel, "receive", stalled)
    pool = start_pool({"hang_timeout_s": LIMIT_S}, e={})
    pool.load("e")
    words = " ".join(map(str, range(30_000)))
    generation = pool.generate("e", words, max_tokens=100_000)
    next(generation)
    go_on.clear()
    assert pool._loop.crew is not None
    pulse = pool._loop.crew._processes[worker(pool).life].pulse
    threading.Event().wait(1.0)
    beats, steps = pulse()
    threading.Event().wait(4.0)
    assert pulse()[0] > beats
    assert pulse()[1] == steps
    go_on.set()
    assert "0" + generation.result().text == words
    assert worker(pool).restarts == 0


@contextmanager
def standing_still(pool: Supervisor) -> Iterator[None]:
    """The supervisor's thread does nothing meanwhile."""
    began, wakes = threading.Event(), threading.Event()

    def stand(now: float) -> list[Effect]:
        began.set()
        wakes.wait(DEADLINE_S)
        return []

    pool._loop.post(stand)
    assert began.wait(DEADLINE_S)
    try:
        yield
    finally:
        wakes.set()


def unhandled(pool: Supervisor) -> int:
    """All that waits in the inbox: what is flooded, and the little that timers put there."""
    return pool._loop._inbox._queue.qsize()


def test_chaos_031_no_more_of_a_flood_of_tokens_waits_in_the_supervisor_than_it_can_soon_take_in(
    start_pool: StartPool,
) -> None:
    """So that whatever else is asked meanwhile is answered soon, on a slow machine too."""
    pool = start_pool(_stands_still=True, e={})
    pool.load("e")
    words = " ".join(map(str, range(10_000)))
    generation = pool.generate("e", words, max_tokens=20_000)
    next(generation)
    assert pool._loop.crew is not None
    pulse = pool._loop.crew._processes[worker(pool).life].pulse
    with standing_still(pool):
        threading.Event().wait(2.0)
        steps = pulse()[1]
        threading.Event().wait(1.0)
        assert pulse()[1] == steps
        assert process.UNHANDLED // 2 <= unhandled(pool) <= 2 * process.UNHANDLED
    assert "0" + generation.result().text == words


def test_chaos_032_whoever_asks_for_thousands_at_once_waits_and_all_others_are_heard(start_pool: StartPool) -> None:
    pool = start_pool({"max_queue": 1000}, _stands_still=True, e={})
    pool.load("e")
    generations: list[Generation] = []

    def ask() -> None:
        generations.extend([pool.generate("e", str(number)) for number in range(3 * loop.UNHANDLED)])

    flood = threading.Thread(target=ask)
    with standing_still(pool):
        flood.start()
        wait_until(lambda: unhandled(pool) >= loop.UNHANDLED)
        threading.Event().wait(1.0)
        assert unhandled(pool) <= 2 * loop.UNHANDLED
    flood.join(DEADLINE_S)
    assert [generation.result().text for generation in generations] == list(map(str, range(3 * loop.UNHANDLED)))


def test_whoever_is_held_back_when_the_supervisor_ends_is_told_so(start_pool: StartPool) -> None:
    pool = start_pool(_stands_still=True, e={})
    pool.load("e")
    generations: list[Generation] = []

    def ask() -> None:
        generations.extend([pool.generate("e", str(number)) for number in range(3 * loop.UNHANDLED)])

    flood, end = threading.Thread(target=ask), threading.Thread(target=pool.stop)
    with standing_still(pool):
        end.start()
        flood.start()
        wait_until(lambda: unhandled(pool) >= loop.UNHANDLED)
    flood.join(DEADLINE_S)
    end.join(DEADLINE_S)
    assert len(generations) == 3 * loop.UNHANDLED
    for generation in generations:
        with pytest.raises(ShuttingDown):
            generation.result()


def test_chaos_081_a_machine_that_slept_kills_nobody(start_pool: StartPool) -> None:
    """Everything stands still, the supervisor too; the workers wake up last."""
    pool = start_pool(LIMITS, _stands_still=True, e={"tokens_per_s": 50.0})
    pool.load("e")
    text = " ".join(map(str, range(100)))
    generation = pool.generate("e", text)
    found = next(generation).text
    stop(pool, signal.SIGSTOP)
    threading.Event().wait(1.2)  # the supervisor has seen the counters as they are from now on
    with standing_still(pool):
        threading.Event().wait(6.0)
    threading.Event().wait(LIMIT_S / 4)
    stop(pool, signal.SIGCONT)
    assert found + generation.result().text == text
    assert pool.generate("e", text).result().text == text  # long enough for a false verdict to be carried out
    assert worker(pool).restarts == 0


def test_chaos_082_a_starved_worker_is_slow_and_not_hung(start_pool: StartPool) -> None:
    """Spinners on all cores, the worker at nice 19: its heart beats late, but it beats."""
    pool = start_pool({"hang_timeout_s": 4.0, "progress_timeout_s": 8.0}, e={"tokens_per_s": 20.0})
    pool.load("e")
    pid = worker(pool).pid
    assert pid is not None
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    spin = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass"
    spinners = [subprocess.Popen([sys.executable, "-S", "-c", spin]) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        text = " ".join(map(str, range(100)))
        assert pool.generate("e", text).result().text == text
        for spinner in spinners:
            spinner.wait(DEADLINE_S)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert worker(pool).restarts == 0


def test_a_request_that_is_late_ends_and_frees_its_place(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 20.0})
    pool.load("e")
    generation = pool.generate("e", TEXT, timeouts=Timeouts(total_s=0.5))
    began = time.monotonic()
    with pytest.raises(RequestTimeout, match="not finished within"):
        generation.result()
    assert time.monotonic() - began < 2.0
    wait_until(lambda: worker(pool).in_flight == 0)


def test_counters_are_freed_with_their_life(start_pool: StartPool) -> None:
    """One page for all lives together: no descriptor more after many of them."""
    pool = start_pool({"backoff_max_s": 0.0, "spare": False}, e={})
    pool.load("e")
    held: list[int] = []
    for _ in range(10):
        life = worker(pool).life
        stop(pool, signal.SIGKILL)
        wait_until(lambda life=life: worker(pool).life > life and worker(pool).state is WorkerState.READY)
        held.append(len(list(Path("/dev/fd").iterdir())))
    assert max(held[5:]) <= max(held[:5]) + 1


@pytest.mark.model
def test_chaos_019_an_endless_chat_template_of_a_real_model(start_pool: StartPool, tmp_path: Path) -> None:
    """Jinja's sandbox bounds each range, not their product."""
    import tiny_model

    loops = "".join(f"{{% for {name} in range(99999) %}}" for name in "abcd") + "x" + "{% endfor %}" * 4
    folder = tiny_model.build(tmp_path / "tiny")
    (folder / "chat_template.jinja").write_text(loops)
    pool = start_pool({"progress_timeout_s": 3.0})
    pool.load(str(folder))
    name = pool.status().current
    assert name is not None
    began = time.monotonic()
    poison = pool.generate(name, "hello")
    wait_until(lambda: worker(pool, name).restarts == 1)
    assert time.monotonic() - began < 3.0 + GRACE_S
    assert "jinja2" in dump_named_in(worker(pool, name).reason)
    with pytest.raises(RequestCrashesWorker, match="alive, but no progress") as caught:
        poison.result()
    assert "jinja2" in dump_named_in(str(caught.value))
    assert pool.generate(name, "hello", template=False, max_tokens=3).result().finish_reason == "length"
