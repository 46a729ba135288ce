"""The supervisor with real worker processes, on the echo engine."""

import os
import random
import signal
import threading
import time
from multiprocessing import connection
from pathlib import Path

import psutil
import pytest
from pools import DEADLINE_S, StartPool, wait_until

from forgellm import Supervisor
from forgellm.errors import (
    EngineUnavailable,
    ForgeLLMError,
    InvalidRequest,
    ModelInvalid,
    ModelLoading,
    ModelNotFound,
    RequestCrashesWorker,
    ShuttingDown,
    WorkerDied,
)
from forgellm.messages import Request
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus
from forgellm.supervisor.effects import Died
from model_files import llama_folder

pytestmark = pytest.mark.process

WORDS = " ".join(str(number) for number in range(100_000))


def worker(pool: Supervisor, model: str = "e", replica: int = 1) -> WorkerStatus:
    found = pool.status().model(model)
    assert found is not None
    return found.workers[replica - 1]


def pid(pool: Supervisor, model: str = "e", replica: int = 1) -> int:
    number = worker(pool, model, replica).pid
    assert number is not None
    return number


def is_ready(pool: Supervisor, life_after: int, model: str = "e") -> bool:
    return worker(pool, model).life > life_after and worker(pool, model).state is WorkerState.READY


def test_a_request_that_runs_already_is_refused_and_goes_on(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 20})
    pool.load("e")
    request = Request(request_id="mine", model="e", prompt="one two three")
    first = pool.submit(request)
    with pytest.raises(InvalidRequest, match="mine runs already"):
        pool.submit(request).result()
    assert first.result().text == "one two three"


def test_a_loaded_model_answers_token_by_token(start_pool: StartPool) -> None:
    pool = start_pool(e={})
    loaded = pool.load("e")
    assert loaded.loading_time_s is not None
    generation = pool.generate("e", "one two three")
    assert [token.text for token in generation] == ["one", " two", " three"]
    assert generation.finish_reason == "stop"
    assert generation.usage is not None
    assert generation.usage.completion_tokens == 3


def test_errors_of_a_request_arrive_at_its_reader(start_pool: StartPool) -> None:
    pool = start_pool(e={"fail_at_token": 1})
    with pytest.raises(ModelNotFound):
        pool.generate("nobody", "one two").result()
    with pytest.raises(InvalidRequest, match="empty") as caught:
        pool.generate("e", " ").result()
    assert caught.value.field == "prompt"
    with pytest.raises(ForgeLLMError, match="fail_at_token"):
        pool.generate("e", "one two").result()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temprature", 1),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("max_tokens", 0),
        ("max_tokens", 2**63),
        ("top_p", 2),
        ("stop", ""),
        ("seed", 2**70),
        ("logit_bias", {1: 1000}),
        ("logprobs", 21),
    ],
)
def test_chaos_059_a_parameter_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Supervisor().generate("e", "one", **{name: value})
    assert caught.value.field == name


def test_a_load_option_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="replicas") as caught:
        Supervisor().load("echo", replica=2)  # type: ignore[call-arg]
    assert caught.value.field == "replica"


def test_a_name_that_is_not_known_is_refused_before_anything_changes(start_pool: StartPool) -> None:
    pool = start_pool(e={})
    pool.load("e")
    before = pid(pool)
    with pytest.raises(ModelNotFound):
        pool.load("no-such-model")
    assert pool.status().current == "e"
    assert pid(pool) == before


def test_a_load_that_fails_says_why_and_leaves_no_process(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, e={"load_error": "model_invalid: the header is cut", "print_at_load": "boo"})
    with pytest.raises(ModelInvalid, match="the header is cut"):
        pool.load("e")
    assert worker(pool).state is WorkerState.FAILED
    assert workers_of(pool) == []


def test_chaos_006_a_death_in_the_first_load_is_told_with_the_last_log_line(start_pool: StartPool) -> None:
    pool = start_pool(e={"die_in_load": "SIGSEGV", "print_at_load": "reading a strange tensor"})
    with pytest.raises(WorkerDied, match=r"SIGSEGV.*at echo.py, line .*last log line: reading a strange tensor"):
        pool.load("e")


def test_a_load_can_be_waited_for_or_not(start_pool: StartPool) -> None:
    pool = start_pool(e={"load_s": 0.5})
    assert pool.load("e", wait=False).loading_time_s is None
    with pytest.raises(ModelLoading):
        pool.load("e", timeout_s=0.01)
    assert pool.load("e").loading_time_s is not None


def test_chaos_009_a_stream_goes_on_after_its_worker_is_killed(start_pool: StartPool) -> None:
    """No token lost, none repeated: the client sees a pause."""
    pool = start_pool(e={"tokens_per_s": 200.0})
    pool.load("e")
    text = " ".join(map(str, range(300)))
    generation = pool.generate("e", text)
    found = next(generation).text
    for _ in range(2):
        life = worker(pool).life
        os.kill(pid(pool), signal.SIGKILL)
        wait_until(lambda life=life: is_ready(pool, life))
        found += next(generation).text
    assert found + generation.result().text == text
    assert generation.usage is not None
    assert generation.usage.completion_tokens == 300
    assert worker(pool).restarts == 2


def test_chaos_022_a_poisoned_request_is_quarantined_and_its_neighbours_finish_whole(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 100.0, "crash_if_prompt_has": "poison", "crash_signal": "SIGABRT"})
    pool.load("e")
    texts = [" ".join(f"{n}.{word}" for word in range(100)) for n in range(8)]
    neighbours = [pool.generate("e", text) for text in texts]
    firsts = [next(neighbour).text for neighbour in neighbours]
    poison = pool.generate("e", "poison")
    with pytest.raises(RequestCrashesWorker, match="SIGABRT"):
        poison.result()
    assert [first + n.result().text for first, n in zip(firsts, neighbours, strict=True)] == texts


def test_leaving_a_generation_early_ends_it_in_the_worker(start_pool: StartPool) -> None:
    """Also without close(): the last reference is enough."""
    pool = start_pool(e={"tokens_per_s": 100.0})
    pool.load("e")
    for token in pool.generate("e", WORDS):
        assert token.text == "0"
        break
    wait_until(lambda: worker(pool).in_flight == 0)
    with pool.generate("e", WORDS) as generation:
        next(generation)
    wait_until(lambda: generation.finish_reason == "abort")


def test_two_models_answer_at_the_same_time_and_one_unload_leaves_the_other_alone(start_pool: StartPool) -> None:
    pool = start_pool(a={"tokens_per_s": 200.0, "allocate_bytes": 200 << 20}, b={"tokens_per_s": 200.0})
    pool.load("a")
    pool.load("b")
    text = " ".join(map(str, range(200)))
    first, second = pool.generate("a", "short one"), pool.generate("b", text)
    assert first.result().text == "short one"
    before = psutil.Process(pid(pool, "a")).memory_info().rss
    gone = psutil.Process(pid(pool, "a"))
    freed = pool.unload("a").freed_bytes
    assert before > 200 << 20
    assert freed > 200 << 20
    assert not gone.is_running()
    assert second.result().text == text


def test_replicas_share_the_load_and_outlive_each_other(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 50.0})
    pool.load("e", replicas=2)
    text = " ".join(map(str, range(50)))
    generations = [pool.generate("e", text) for _ in range(4)]
    for generation in generations:
        next(generation)
    assert [worker(pool, replica=n).in_flight for n in (1, 2)] == [2, 2]
    os.kill(pid(pool, replica=1), signal.SIGKILL)
    assert ["0" + generation.result().text for generation in generations] == [text] * 4


def test_streams_move_from_a_worker_that_must_go(start_pool: StartPool) -> None:
    """Live migration: one replica less, and nobody notices."""
    pool = start_pool(e={"tokens_per_s": 100.0})
    pool.load("e", replicas=2)
    text = " ".join(map(str, range(150)))
    generations = [pool.generate("e", text) for _ in range(4)]
    for generation in generations:
        next(generation)
    gone = pid(pool, replica=2)
    pool.load("e", replicas=1)
    wait_until(lambda: not psutil.pid_exists(gone), timeout_s=1)
    assert ["0" + generation.result().text for generation in generations] == [text] * 4


def test_chaos_020_a_worker_that_ignores_unload_and_sigterm_is_killed(start_pool: StartPool) -> None:
    pool = start_pool(
        {"unload_timeout_s": 0.2, "term_timeout_s": 0.2}, e={"ignore_unload": True, "ignore_sigterm": True}
    )
    pool.load("e")
    assert pool.unload("e").forced


def test_chaos_025_a_worker_that_closes_its_channel_but_lives_is_killed(start_pool: StartPool) -> None:
    pool = start_pool(e={"close_channel_at_prompt": "hang up"})
    pool.load("e")
    with pytest.raises(RequestCrashesWorker):
        pool.generate("e", "hang up").result()
    assert pool.generate("e", "still here").result().text == "still here"


def test_chaos_024_a_grandchild_that_holds_the_pipes_does_not_hide_a_death(start_pool: StartPool) -> None:
    pool = start_pool(e={"fork_at_load": True})
    pool.load("e")
    life, number = worker(pool).life, pid(pool)
    (grandchild,) = psutil.Process(number).children()
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: is_ready(pool, life))
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


def test_a_warm_spare_takes_over(start_pool: StartPool) -> None:
    pool = start_pool(e={})
    pool.load("e")
    wait_until(lambda: pool.status().spare_is_warm)
    spare = pool.status().spare_pid
    life = worker(pool).life
    os.kill(pid(pool), signal.SIGKILL)
    wait_until(lambda: is_ready(pool, life))
    assert pid(pool) == spare


def test_chaos_037_the_log_of_a_chatty_worker_is_bounded_and_blocks_nobody(
    start_pool: StartPool, tmp_path: Path
) -> None:
    pool = start_pool({"log_bytes": 10_000}, e={"print_at_load": "x" * 200_000})
    pool.load("e")
    logs = tmp_path / "logs"
    wait_until(lambda: sum(log.stat().st_size for log in logs.iterdir()) < 10_000)
    assert pool.generate("e", "still here").result().text == "still here"


def test_footprints_of_the_workers_are_in_the_status(start_pool: StartPool) -> None:
    pool = start_pool(e={"allocate_bytes": 50 << 20})
    pool.load("e")
    wait_until(lambda: worker(pool).memory.footprint_bytes > 50 << 20)
    assert worker(pool).memory.mlx_active_bytes == 50 << 20


def test_stop_aborts_what_runs_and_leaves_nothing(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 100.0})
    pool.load("e")
    generation = pool.generate("e", WORDS)
    next(generation)
    pids = workers_of(pool)
    pool.stop()
    assert generation.result().finish_reason == "abort"
    assert not any(psutil.pid_exists(number) for number in pids)
    with pytest.raises(ShuttingDown):
        pool.generate("e", "too late").result()
    with pytest.raises(ShuttingDown):
        pool.load("e")


@pytest.mark.chaos
def test_chaos_033_a_request_to_a_worker_that_dies_this_instant_always_ends(start_pool: StartPool) -> None:
    pool = start_pool({"backoff_max_s": 0.0}, e={"tokens_per_s": 100.0})
    pool.load("e")
    for _ in range(30):
        life, number = worker(pool).life, pid(pool)
        killer = threading.Thread(target=os.kill, args=(number, signal.SIGKILL))
        killer.start()
        assert pool.generate("e", "one two").result().text == "one two"
        killer.join()
        wait_until(lambda life=life: is_ready(pool, life))


@pytest.mark.alone
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_200_kills_at_random_moments_are_all_noticed_and_survived(start_pool: StartPool) -> None:
    """Every death noticed, every respawn serves; no orphan, no leaked thread, descriptor or semaphore.

    A machine that is busy notices late, whoever watches: so each death is timed beside a bare wait for its sentinel."""
    pool = start_pool({"backoff_max_s": 0.0}, e={"tokens_per_s": 500.0})
    pool.load("e")
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    pause = threading.Event()
    baseline: tuple[int, int, int] | None = None
    noticed, bare = [], []
    generation = pool.generate("e", WORDS)
    for kill in range(200):
        next(generation)
        pause.wait(dice.random() * 0.02)
        life, number = worker(pool).life, pid(pool)
        watcher = Watcher(pool, life)
        with pool.watch() as watch:
            killed = time.monotonic()
            os.kill(number, signal.SIGKILL)
            told_of: list[int] = []
            while life not in told_of:
                told_of += [each.life for each in watch.take(DEADLINE_S) if isinstance(each, Died)]
                assert time.monotonic() - killed < DEADLINE_S
            noticed.append(time.monotonic() - killed)
        bare.append(watcher.died_at() - killed)
        wait_until(lambda life=life: is_ready(pool, life))
        assert pool.generate("e", f"kill {kill}").result().text == f"kill {kill}"
        if kill == 20:
            wait_until(lambda: pool.status().spare_is_warm)
            baseline = held()
    wait_until(lambda: pool.status().spare_is_warm)
    wait_until(lambda: len(workers_of(pool)) == 2)
    ours, theirs = sorted(noticed)[197], sorted(bare)[197]
    told = f"p99 {ours * 1000:.1f} ms, a bare sentinel {theirs * 1000:.1f} ms (seed {seed})"
    print(f"deaths noticed after p50 {sorted(noticed)[100] * 1000:.1f} ms, {told}")
    assert ours < max(0.05, 5 * theirs), told
    generation.close()
    assert baseline is not None
    wait_until(lambda: all(now <= then + 1 for now, then in zip(held(), baseline, strict=True)))


class Watcher:
    """Waits for a worker's sentinel and for nothing else: the fastest that a death can be noticed."""

    def __init__(self, pool: Supervisor, life: int) -> None:
        assert pool._loop.crew is not None
        self._sentinel = os.dup(pool._loop.crew._processes[life]._process.sentinel)
        self._died_at = 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def died_at(self) -> float:
        self._thread.join(DEADLINE_S)
        os.close(self._sentinel)
        return self._died_at

    def _watch(self) -> None:
        assert connection.wait([self._sentinel], DEADLINE_S)
        self._died_at = time.monotonic()


def workers_of(pool: Supervisor) -> list[int]:
    """Pids of all worker processes, the spare included."""
    return list(pool._loop.crew.pids().values()) if pool._loop.crew else []


def held() -> tuple[int, int, int]:
    """(descriptors, threads, named semaphores) of this process."""
    semaphores = len(list(Path("/dev/shm").glob("sem.*"))) if Path("/dev/shm").exists() else 0
    return psutil.Process().num_fds(), threading.active_count(), semaphores


@pytest.mark.chaos
def test_chaos_004_an_engine_that_cannot_be_imported_fails_the_load_with_its_text(
    start_pool: StartPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken install is told, and not tried again and again; the spare gives up as well."""
    (tmp_path / "stub" / "mlx").mkdir(parents=True)
    (tmp_path / "stub" / "mlx" / "__init__.py").write_text("raise ImportError('libmlx is broken')")
    monkeypatch.syspath_prepend(tmp_path / "stub")
    pool = start_pool()
    with pytest.raises(EngineUnavailable, match="libmlx is broken"):
        pool.load(str(llama_folder(tmp_path / "llama")))
    wait_until(lambda: workers_of(pool) == [])


def test_a_load_that_is_not_waited_for_shows_in_the_status_at_once(start_pool: StartPool) -> None:
    """Or a request sent right after it would reach the model before."""
    pool = start_pool({"spare": False}, a={}, b={"load_s": 0.2})
    pool.load("a")
    for _ in range(20):
        assert pool.load("b", wait=False).already_loaded is False
        assert pool.status().current == "b"
        assert pool.load("a", wait=False).already_loaded is True
        assert pool.status().current == "a"
        pool.unload("b")
