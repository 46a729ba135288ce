"""Faults of the catalogue (tests/chaos) with real workers; after each, one helper looks at what must always hold."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest
from pools import StartPool, wait_until

from forgellm import Generation, Supervisor
from forgellm.errors import ForgeLLMError, GpuOutOfMemory, ModelChanged, QueueFull, WorkerDied
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus
from forgellm.supervisor.effects import Died
from forgellm.supervisor.process import CONTEXT
from invariants import bystander
from leaks import children, descriptors, leftovers, threads

pytestmark = [pytest.mark.process, pytest.mark.chaos]

TEXT = " ".join(map(str, range(120)))


def workers(pool: Supervisor, model: str = "e") -> tuple[WorkerStatus, ...]:
    found = pool.status().model(model)
    return found.workers if found else ()


def pid(pool: Supervisor, model: str = "e") -> int:
    return workers(pool, model)[0].pid or 0


def all_ready(pool: Supervisor, model: str = "e") -> bool:
    return all(worker.state is WorkerState.READY for worker in workers(pool, model))


def started(generations: list[Generation]) -> bool:
    return all(generation.time_to_first_token_s is not None for generation in generations)


@pytest.fixture
def start_pool(start_pool: StartPool) -> Iterator[StartPool]:
    """Each pool serves a bystander meanwhile, whose stream must show no gap."""
    with ExitStack() as stack:

        def start(_settings: dict[str, Any] | None = None, /, **models: dict[str, Any]) -> Supervisor:
            pool = start_pool(_settings, **models, bystander={"tokens_per_s": 20.0})
            stack.enter_context(bystander(pool, "bystander"))
            return pool

        yield start


def others(pool: Supervisor) -> list[int]:
    """The processes of workers but for the bystander's."""
    assert pool._loop.crew is not None
    return [number for number in pool._loop.crew.pids().values() if number != pid(pool, "bystander")]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """After its pool has stopped, a fault leaves no thread and no descriptor."""
    resource_tracker.ensure_running()
    before = (threads(), descriptors())
    yield
    assert leftovers(before, lambda: (threads(), descriptors())) == []


def assert_sound(pool: Supervisor, model: str = "e") -> None:
    """It serves again, nothing is in flight, and each life that is shown is a living process."""
    wait_until(lambda: all_ready(pool, model))
    assert pool.generate(model, "still here").result().text == "still here"
    wait_until(lambda: all(worker.in_flight == 0 for worker in workers(pool, model)))
    for worker in workers(pool, model):
        assert worker.pid is not None
        assert psutil.Process(worker.pid).is_running()


@pytest.fixture
def interpreter(tmp_path: Path) -> Iterator[Path]:
    """What is started instead of Python, once it is written."""
    from multiprocessing import spawn

    python = spawn.get_executable()
    yield tmp_path / "python"
    CONTEXT.set_executable(python)


def test_chaos_001_a_worker_killed_before_its_first_word_is_tried_once_more(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, e={})
    pool.load("e", wait=False)
    (first,) = others(pool)
    os.kill(first, signal.SIGKILL)
    assert pool.load("e", timeout_s=20).model == "e"
    assert pid(pool) != first
    assert_sound(pool)


@pytest.mark.parametrize("does", ["exit 9", "exec sleep 60"], ids=["002 exits", "003 hangs"])
def test_chaos_002_003_an_interpreter_that_does_not_run_fails_the_load_after_two_tries(
    start_pool: StartPool, interpreter: Path, does: str
) -> None:
    pool = start_pool({"spare": False, "hello_timeout_s": 0.5}, e={})
    interpreter.write_text(f"#!/bin/sh\n{does}\n")
    interpreter.chmod(0o700)
    CONTEXT.set_executable(str(interpreter))
    began = time.monotonic()
    with pytest.raises(WorkerDied):
        pool.load("e", timeout_s=20)
    assert time.monotonic() - began < 10
    assert workers(pool)[0].life == workers(pool, "bystander")[0].life + 2
    assert others(pool) == []


def test_chaos_005_a_kill_in_mid_load_answers_whoever_waits_and_gives_the_memory_back(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, e={"die_in_load": "SIGKILL", "load_s": 0.5, "allocate_bytes": 50 << 20})
    pool.load("e", wait=False)
    waiting = pool.generate("e", "one two")
    with pytest.raises(WorkerDied, match="SIGKILL"):
        pool.load("e", timeout_s=20)
    with pytest.raises(WorkerDied):
        waiting.result()
    assert workers(pool)[0].memory.footprint_bytes == 0
    assert others(pool) == []


METAL = "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBuffer…)"


def test_chaos_007_a_worker_without_gpu_memory_goes_on_smaller_and_fails_the_second_time(
    start_pool: StartPool,
) -> None:
    """The texts of its requests are whole all the same."""
    pool = start_pool(
        {"max_batch": 4}, e={"crash_if_prompt_has": "boom", "print_at_crash": METAL, "tokens_per_s": 90.0}
    )
    pool.load("e")
    watch = pool.watch()
    generations = [pool.generate("e", f"{n} {TEXT}") for n in range(3)]
    wait_until(lambda: started(generations))
    poison = pool.generate("e", "boom")
    wait_until(lambda: workers(pool)[0].restarts == 1)
    assert METAL in workers(pool)[0].reason
    assert "half the batch" in workers(pool)[0].reason
    assert [generation.result().text for generation in generations] == [f"{n} {TEXT}" for n in range(3)]
    with pytest.raises(ForgeLLMError):
        poison.result()
    with watch:
        assert [each.cause for each in watch.take(1) if isinstance(each, Died)] == ["gpu_oom"] * 2
    with pytest.raises(GpuOutOfMemory, match="Insufficient Memory"):
        pool.generate("e", "boom").result()
    found = pool.status().model("e")
    assert found is not None
    assert (found.state, found.error_code) == (WorkerState.FAILED, "gpu_oom")
    pool.load("e")
    assert_sound(pool)


def test_chaos_012_a_worker_whose_mapped_file_was_cut_dies_of_sigbus_and_is_not_respawned(
    start_pool: StartPool, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"w" * 64_000)
    pool = start_pool(e={"map_file": str(weights), "tokens_per_s": 90.0})
    pool.load("e")
    os.kill(pid(pool), signal.SIGBUS)
    wait_until(lambda: workers(pool)[0].restarts == 1 and all_ready(pool))
    generation = pool.generate("e", TEXT)
    wait_until(lambda: started([generation]))
    watch = pool.watch()
    os.truncate(weights, 100)
    with pytest.raises(ModelChanged, match=r"weights.gguf was changed"):
        generation.result()
    with watch:
        assert "SIGBUS" in next(each.reason for each in watch.take(1) if isinstance(each, Died))
    lives = [worker.life for worker in workers(pool)]
    found = pool.status().model("e")
    assert found is not None
    assert (found.state, found.error_code) == (WorkerState.FAILED, "model_changed")
    with pytest.raises(ModelChanged):
        pool.generate("e", "again").result()
    assert [worker.life for worker in workers(pool)] == lives
    pool.load("e")
    assert_sound(pool)


def test_chaos_079_a_process_without_a_thread_to_read_it_is_no_worker(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gave the one and not the other: the load fails, and the process does not stay."""
    pool = start_pool({"spare": False}, e={})
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("reader-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(WorkerDied, match="no process could be started"):
            pool.load("e")
    assert others(pool) == []
    assert len([child for child in children() if "spawn_main" in child]) == 1
    pool.load("e")
    assert_sound(pool)


def test_chaos_008_a_kill_in_prefill_costs_a_pause_and_no_answer(start_pool: StartPool) -> None:
    pool = start_pool(e={"prefill_s": 0.4})
    pool.load("e")
    generations = [pool.generate("e", f"{n} {TEXT}") for n in range(4)]
    wait_until(lambda: all(generation.prefill[1] for generation in generations))
    os.kill(pid(pool), signal.SIGKILL)
    assert [generation.result().text for generation in generations] == [f"{n} {TEXT}" for n in range(4)]
    assert_sound(pool)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS])
def test_chaos_009_015_a_signal_in_mid_stream_loses_and_repeats_no_token(
    start_pool: StartPool, number: signal.Signals
) -> None:
    pool = start_pool(e={"tokens_per_s": 200.0})
    pool.load("e")
    generations = [pool.generate("e", f"{n} {TEXT}") for n in range(4)]
    wait_until(lambda: started(generations))
    os.kill(pid(pool), number)
    assert [generation.result().text for generation in generations] == [f"{n} {TEXT}" for n in range(4)]
    assert workers(pool)[0].restarts == 1
    assert_sound(pool)


def test_chaos_011_a_kill_during_the_unload_is_an_unload(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, e={"ignore_unload": True})
    pool.load("e")
    number = pid(pool)
    answers: list[bool] = []
    unloading = threading.Thread(target=lambda: answers.append(pool.unload("e").was_loaded))
    unloading.start()
    wait_until(lambda: workers(pool)[0].state is WorkerState.STOPPING)
    os.kill(number, signal.SIGKILL)
    unloading.join(10)
    assert answers == [True]
    assert workers(pool) == ()


def test_chaos_023_eight_workers_killed_at_once_are_all_noticed_and_replaced(start_pool: StartPool) -> None:
    pool = start_pool({"memory_budget_bytes": 1 << 40}, e={"tokens_per_s": 100.0})
    pool.load("e", replicas=8)
    generations = [pool.generate("e", f"{n} {TEXT}") for n in range(16)]
    wait_until(lambda: started(generations))
    lives = {worker.life for worker in workers(pool)}
    for worker in workers(pool):
        os.kill(worker.pid or 0, signal.SIGKILL)
    noticed_s = wait_until(lambda: lives.isdisjoint(worker.life for worker in workers(pool)))
    assert noticed_s < 2.0  # half of it on a machine that is not busy with tests
    assert [generation.result().text for generation in generations] == [f"{n} {TEXT}" for n in range(16)]
    assert_sound(pool)


def test_chaos_031_a_flood_of_tokens_holds_nobody_else_up(start_pool: StartPool) -> None:
    pool = start_pool(flood={})
    pool.load("flood")
    long = " ".join(map(str, range(30_000)))
    floods = [pool.generate("flood", long, max_tokens=40_000) for _ in range(3)]
    assert all(flood.result().text == long for flood in floods)


def test_chaos_032_a_flood_of_requests_is_refused_beyond_the_queue_and_served_in_order(start_pool: StartPool) -> None:
    pool = start_pool({"max_queue": 100, "max_batch": 1}, e={"prefill_s": 0.002})
    pool.load("e")
    generations = [pool.generate("e", str(number)) for number in range(3000)]
    ends: list[float] = []
    refused = 0
    for number, generation in enumerate(generations):
        try:
            assert generation.result().text == str(number)
            ends.append(generation._started + (generation.total_s or 0.0))
        except QueueFull as error:
            refused += bool(error.retry_after_s)
    assert len(ends) + refused == 3000
    assert refused
    assert ends == sorted(ends)
    assert_sound(pool)


def test_chaos_044_workers_outlive_the_thread_that_started_the_supervisor(start_pool: StartPool) -> None:
    """Linux ends a worker with the thread that started it; so that thread must be the supervisor's own."""
    pools: list[Supervisor] = []

    def start() -> None:
        pools.append(start_pool(e={}))
        pools[0].load("e")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join(20)
    life = workers(pools[0])[0].life
    assert_sound(pools[0])
    assert workers(pools[0])[0].life == life


def test_chaos_045_loading_and_unloading_again_and_again_holds_nothing_back(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, e={})
    held: list[tuple[int, int]] = []
    for _ in range(64):
        pool.load("e")
        assert pool.generate("e", "one").result().text == "one"
        assert pool.unload("e").was_loaded
        held.append((psutil.Process().num_fds(), threading.active_count()))
    assert max(held[32:]) <= (max(held[:32])[0] + 1, max(held[:32])[1] + 1)


def test_chaos_067_aborting_twice_or_after_the_end_or_somebody_unknown_changes_nothing(start_pool: StartPool) -> None:
    pool = start_pool(e={"tokens_per_s": 100.0})
    pool.load("e")
    generation = pool.generate("e", TEXT)
    next(generation)
    for _ in range(3):
        pool.abort(generation.request_id)
    assert generation.result().finish_reason == "abort"
    pool.abort(generation.request_id)
    pool.abort("nobody")
    assert_sound(pool)


TRACKER = """
import os, signal, sys, time, warnings
from multiprocessing import resource_tracker
from forgellm import ModelConfig, Settings, Supervisor
warnings.simplefilter("ignore")
settings = Settings(models={"e": ModelConfig(source="echo")}, cache_dir=sys.argv[1], spare=False)
with Supervisor(settings) as pool:
    pool.load("e")
    os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)
    pool.unload("e")
    pool.load("e")
    print(pool.generate("e", "one two").result().text)
"""


def test_chaos_043_a_killed_resource_tracker_costs_nothing_but_a_warning(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", TRACKER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.returncode) == ("one two\n", 0), run.stderr


def test_chaos_014_an_error_is_told_once_and_the_worker_lives(start_pool: StartPool) -> None:
    """Row 14: an exception in one request is that request's end only."""
    pool = start_pool(e={"fail_at_token": 3, "tokens_per_s": 100.0})
    pool.load("e")
    life = workers(pool)[0].life
    with pytest.raises(ForgeLLMError, match="fail_at_token"):
        pool.generate("e", TEXT).result()
    assert workers(pool)[0].life == life
    assert_sound(pool)
