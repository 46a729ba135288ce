"""The whole life of one real worker in a few seconds: what `make check` runs besides the unit tests."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from forgellm import Settings, Supervisor
from forgellm.config import ModelConfig
from forgellm.states import WorkerState

pytestmark = [pytest.mark.process, pytest.mark.smoke]

DEADLINE_S = 20.0


def ready_pid(pool: Supervisor, other_than: int | None = None) -> int:
    """The worker's pid, as soon as it is ready and not `other_than`."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while time.monotonic() < deadline:
        model = pool.status().model("echo")
        if model and model.state is WorkerState.READY and model.workers[0].pid not in {None, other_than}:
            pid = model.workers[0].pid
            assert pid is not None
            return pid
        pause.wait(0.01)
    raise TimeoutError("no worker was ready in time")


@pytest.mark.usefixtures("no_leaks")
def test_a_worker_answers_dies_answers_again_and_leaves_nothing(tmp_path: Path) -> None:
    settings = Settings(cache_dir=str(tmp_path), models={"echo": ModelConfig(source="echo")}, spare=False)
    with Supervisor(settings) as pool:
        pool.load("echo", timeout_s=DEADLINE_S)
        first = ready_pid(pool)
        assert pool.generate("echo", "one two three").result().text == "one two three"
        os.kill(first, signal.SIGKILL)
        assert ready_pid(pool, other_than=first) != first
        assert pool.generate("echo", "four five").result().text == "four five"
        assert pool.status().models[0].workers[0].restarts == 1
        pool.unload("echo", timeout_s=DEADLINE_S)
        assert pool.status().models == ()
