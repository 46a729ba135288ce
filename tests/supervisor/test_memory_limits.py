"""Memory with real workers: the echo engine allocates what it is told to, under a small budget."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pools import DEADLINE_S, StartPool, wait_until

from forgellm import Supervisor
from forgellm.errors import ForgeLLMError, InsufficientMemory, RequestCrashesWorker
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus, loop, memory
from forgellm.supervisor.effects import Died
from forgellm.supervisor.memory import OomWatch
from forgellm.worker.main import OOM_SCORE
from invariants import bystander

pytestmark = [pytest.mark.process, pytest.mark.chaos]

MB = 1_000_000
WORDS = " ".join(str(number) for number in range(100_000))
MAX_GAP_S = 1.0


def settings(budget_mb: int, **more: Any) -> dict[str, Any]:
    return {"memory_budget_bytes": budget_mb * MB, "spare": False, **more}


def worker(pool: Supervisor, model: str) -> WorkerStatus:
    found = pool.status().model(model)
    assert found is not None
    return found.workers[0]


def names(pool: Supervisor) -> set[str]:
    return {model.name for model in pool.status().models}


def test_idle_models_make_room_in_order_and_their_memory_is_back_before_the_next_load(start_pool: StartPool) -> None:
    pool = start_pool(
        settings(260, memory_soft_limit=1.0),
        busy={"tokens_per_s": 50},
        old={"allocate_bytes": 80 * MB},
        new={"allocate_bytes": 80 * MB},
        big={"allocate_bytes": 100 * MB},
    )
    for name in ("busy", "old", "new"):
        pool.load(name)
    pool.generate("old", "used").result()
    with bystander(pool, "busy"):
        plan = pool.plan("big")
        assert (plan.fits, plan.would_evict) == (True, ("new",))
        gone = worker(pool, "new").pid
        assert gone is not None
        pool.load("big")
        assert not psutil.pid_exists(gone)
        assert names(pool) == {"busy", "old", "big"}


def test_chaos_027_a_kill_minus_9_at_most_of_the_budget_is_suspected_memory(start_pool: StartPool) -> None:
    pool = start_pool(settings(200, memory_soft_limit=1.0), e={"allocate_bytes": 185 * MB // 1024 * 1024})
    with pytest.raises(InsufficientMemory):
        pool.load("e")  # with a tenth for loading it is too large for this budget
    pool = start_pool(settings(210, memory_soft_limit=1.0), e={"allocate_bytes": 185 * MB})
    pool.load("e")
    wait_until(lambda: worker(pool, "e").memory.footprint_bytes > 190 * MB)
    pid, life = worker(pool, "e").pid, worker(pool, "e").life
    assert pid is not None
    psutil.Process(pid).send_signal(signal.SIGKILL)
    wait_until(lambda: worker(pool, "e").life > life)
    assert "suspected memory" in worker(pool, "e").reason
    wait_until(lambda: worker(pool, "e").state is WorkerState.READY)


def test_chaos_028_a_runaway_is_ended_at_the_hard_limit_and_takes_nobody_along(start_pool: StartPool) -> None:
    """Its newest request ends with the reason; if it still grows the worker is killed, and the older one goes on."""
    pool = start_pool(
        settings(300),
        quiet={"tokens_per_s": 50, "allocate_bytes": 60 * MB, "cache_bytes": 20 * MB},
        runaway={"tokens_per_s": 20, "leak_bytes_per_token": 2 * MB},
    )
    pool.load("quiet")
    pool.load("runaway")
    quiet, life = worker(pool, "quiet").pid, worker(pool, "runaway").life
    with bystander(pool, "quiet"):
        older = pool.generate("runaway", " ".join(["word"] * 100), max_tokens=100)
        newest = pool.generate("runaway", WORDS, max_tokens=100_000)
        above: list[float] = []

        def is_over() -> bool:
            held = sum(worker(pool, name).memory.footprint_bytes for name in ("quiet", "runaway"))
            if held > 300 * MB:
                above.append(time.monotonic())
            return worker(pool, "runaway").life > life

        wait_until(is_over)
        with pytest.raises(InsufficientMemory, match="newest request"):
            newest.result()
        assert "memory limit" in worker(pool, "runaway").reason
        assert above[-1] - above[0] < MAX_GAP_S, "one sample above the limit, and its consequences"
        assert len(older.result().text.split()) == 100
        assert worker(pool, "quiet").memory.mlx_cache_bytes == 0, "above the soft limit its cache was dropped"
    assert worker(pool, "quiet").pid == quiet


def test_chaos_029_a_load_larger_than_the_memory_is_refused_before_a_spawn(start_pool: StartPool) -> None:
    """With the budget that the machine gives by itself."""
    pool = start_pool({"spare": False}, small={}, huge={"allocate_bytes": psutil.virtual_memory().total})
    pool.load("small")
    started = time.monotonic()
    with pytest.raises(InsufficientMemory, match=r"huge needs .* GB .* whole budget"):
        pool.load("huge", wait=False)
    assert time.monotonic() - started < 1
    assert names(pool) == {"small"}


def test_chaos_030_of_loads_that_race_for_the_last_memory_one_wins_and_reservations_come_back(
    start_pool: StartPool,
) -> None:
    racers = {f"racer{i}": {"allocate_bytes": 100 * MB, "load_s": 0.3} for i in range(4)}
    broken = {"broken": {"allocate_bytes": 100 * MB, "load_error": "model_invalid: cut short"}}
    pool = start_pool(settings(200), **racers, **broken)
    with pytest.raises(ForgeLLMError, match="cut short"):
        pool.load("broken")
    outcomes: list[str] = []

    def race(name: str) -> None:
        try:
            pool.load(name)
            outcomes.append("won")
        except InsufficientMemory:
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(name,)) for name in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(outcomes) == ["refused"] * 3 + ["won"]
    pool.unload()
    plan = pool.plan("racer0")
    assert (plan.fits, plan.reserved_bytes, plan.would_evict) == (True, 0, ())


def test_an_idle_worker_is_recycled_and_requests_wait_for_the_fresh_one(start_pool: StartPool) -> None:
    pool = start_pool({"recycle_after_requests": 2, "spare": False}, e={})
    pool.load("e")
    life = worker(pool, "e").life
    for _ in range(3):
        assert pool.generate("e", "one two").result().text == "one two"
    assert worker(pool, "e").life == life + 1
    assert worker(pool, "e").restarts == 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_busy_worker_is_recycled_and_its_streams_go_on(start_pool: StartPool, replicas: int) -> None:
    """With one replica its successor is loaded first; the texts are whole, and at no time was nobody ready."""
    pool = start_pool({"recycle_after_requests": 2}, e={"tokens_per_s": 60.0, "load_s": 0.3})
    pool.load("e", replicas=replicas)
    before = {worker.life for worker in found_workers(pool)}
    texts = [" ".join(f"{stream}.{word}" for word in range(200)) for stream in range(4)]
    generations = [pool.generate("e", text) for text in texts]
    short = [pool.generate("e", "one two") for _ in range(2 * replicas)]
    assert [generation.result().text for generation in short] == ["one two"] * 2 * replicas

    def is_renewed() -> bool:
        assert any(worker.state is WorkerState.READY for worker in found_workers(pool))
        lives = {worker.life for worker in found_workers(pool)}
        return lives.isdisjoint(before) and len(lives) == replicas

    wait_until(is_renewed)
    assert [generation.result().text for generation in generations] == texts
    assert all(worker.restarts == 0 for worker in found_workers(pool))


def found_workers(pool: Supervisor) -> tuple[WorkerStatus, ...]:
    return pool.status().models[0].workers


IN_A_CGROUP = """
import os, pathlib, sys
from forgellm import ModelConfig, Settings, Supervisor
from forgellm.errors import ModelFailed, WorkerDied
from invariants import bystander, sound_pool
group, size = pathlib.Path(sys.argv[1]), int(sys.argv[2])
(group / "cgroup.procs").write_text(str(os.getpid()))
large, leak = {"allocate_bytes": size}, {"leak_bytes_per_token": size // 100, "tokens_per_s": 100.0}
knobs = {"large": large, "leak": leak, "small": {"tokens_per_s": 20.0}}
models = {name: ModelConfig(source="echo", options=options) for name, options in knobs.items()}
at_once = {"backoff_initial_s": 0.0, "backoff_max_s": 0.0}
settings = Settings(models=models, cache_dir=sys.argv[3], spare=False, memory_budget_bytes=100 * size, **at_once)
with sound_pool(Supervisor(settings)) as pool:
    pool.load("small")
    with bystander(pool, "small"):
        try:
            pool.load("large")
        except WorkerDied as error:
            print(error)
        generation = pool.generate("leak", " ".join(["word"] * 1000), max_tokens=1000)
        try:
            generation.result()
        except ModelFailed as error:
            print(error)
"""
CGROUP_BYTES = 400 * MB
OWN_SCORE = Path("/proc/self/oom_score_adj")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A group with a limit for memory, for one process of a test; in that of TEST_CGROUP, else in the tests' own."""
    parent = Path(os.environ["TEST_CGROUP"]) if "TEST_CGROUP" in os.environ else next(memory._cgroups(), None)
    if parent is None:
        pytest.skip("this system has no cgroups")
    group = parent / f"forgellm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        limit = next((group / name for name in memory._LIMITS if (group / name).exists()), None)
        if limit is None:
            pytest.skip(f"{parent} hands no control of memory on; TEST_CGROUP may name a cgroup that does")
        limit.write_text(str(CGROUP_BYTES))
        for name in ("memory.swap.max", "memory.swappiness"):  # of v2 and v1: else it would be slow, and not killed
            if (group / name).exists():
                (group / name).write_text("0")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_chaos_026_the_kernel_kills_for_memory_in_a_load_and_in_streams_and_takes_nobody_along(
    cgroup: Path, tmp_path: Path
) -> None:
    """A load fails with the reason; so does a model whose memory grows with each token, at the third death: requests
    that got on are not blamed."""
    command = [sys.executable, "-c", IN_A_CGROUP, str(cgroup), str(CGROUP_BYTES), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    load, stream = run.stdout.splitlines()
    assert load.endswith("killed by the system: out of memory (oom_kill of the cgroup), while loading")
    assert "3 deaths in 300 s" in stream
    assert stream.endswith("killed by the system: out of memory (oom_kill of the cgroup)")


@pytest.mark.skipif(not OWN_SCORE.exists(), reason="only Linux has a score for who is killed first")
def test_chaos_026_workers_ask_the_kernel_to_kill_them_before_the_supervisor(start_pool: StartPool) -> None:
    """A small one, even, while the memory of a large one that it has just killed is not free yet."""
    pool = start_pool({"spare": False}, e={})
    pool.load("e")
    score = Path(f"/proc/{worker(pool, 'e').pid}/oom_score_adj")
    assert int(score.read_text()) == min(1000, int(OWN_SCORE.read_text()) + OOM_SCORE)


def test_chaos_026_a_request_under_which_the_kernel_kills_for_memory_twice_is_ended(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's count is played here, and its kills; the cause is in the watch, the words in the error."""
    kills = itertools.count()
    monkeypatch.setattr(loop, "OomWatch", lambda: OomWatch(lambda: next(kills)))
    pool = start_pool({"spare": False, "backoff_max_s": 0.0}, e={"prefill_s": 60.0})
    pool.load("e")
    with pool.watch() as watch:
        generation = pool.generate("e", "one two")
        for life in (1, 2):
            wait_until(lambda life=life: (worker(pool, "e").life, worker(pool, "e").in_flight) == (life, 1))  # type: ignore[misc]
            os.kill(worker(pool, "e").pid or 0, signal.SIGKILL)
        with pytest.raises(RequestCrashesWorker, match="out of memory"):
            generation.result()
        assert [each.cause for each in watch.take(1) if isinstance(each, Died)] == ["oom"] * 2
