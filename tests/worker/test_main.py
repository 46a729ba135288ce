"""The worker's loop, against an engine that does as it is told; its bootstrap is tested with real processes."""

from typing import Any

import pytest

from forgellm.errors import ContextLengthExceeded, ModelInvalid
from forgellm.inbox import Inbox
from forgellm.messages import (
    Abort,
    Bye,
    Command,
    EngineOptions,
    Generate,
    Load,
    LoadFailed,
    Loading,
    Memory,
    ModelInfo,
    ModelSource,
    Ready,
    Request,
    RequestFailed,
    Unload,
)
from forgellm.worker.engine import Progress, StepResult
from forgellm.worker.main import ExitCode, _Loop
from forgellm.worker.pulse import Counters
from model_info import INFO

LOAD = Load(ModelSource(name="m", kind="echo"), EngineOptions())


class Obedient:
    """An engine whose answers the test chooses."""

    def __init__(self) -> None:
        self.load_error: Exception | None = None
        self.add_error: Exception | None = None
        self.running: list[str] = []
        self.aborted: list[str] = []
        self.is_closed = False

    def load(self, source: ModelSource, options: EngineOptions, progress: Progress) -> ModelInfo:
        progress(0.5, "reading weights")
        if self.load_error:
            raise self.load_error
        return INFO

    def add(self, request: Request) -> None:
        if self.add_error:
            raise self.add_error
        self.running.append(request.request_id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def has_work(self) -> bool:
        return bool(self.running)

    def step(self) -> StepResult:
        done, self.running = self.running, []
        return tuple((request_id, "t", (1,), None, "stop", None) for request_id in done), ()

    def memory(self) -> tuple[int, int]:
        return 5, 6

    def close(self) -> None:
        self.is_closed = True


class Up(list[Any]):
    """The up-queue, as far as the loop sees it."""

    put = list.append


def run(engine: Obedient, *commands: Command) -> tuple[ExitCode, Up]:
    down: Inbox[Command] = Inbox()
    for command in commands:
        down.put(command)
    up = Up()
    return _Loop(engine, down, up, Counters()).run(), up  # type: ignore[arg-type]


def generate(request_id: str = "r") -> Generate:
    return Generate(Request(request_id=request_id, model="m", prompt="x"))


def test_a_life_is_load_generate_unload() -> None:
    engine = Obedient()
    code, up = run(engine, LOAD, generate(), Abort("other"), Unload())
    assert code is ExitCode.OK
    assert up[0] == Loading(0.5, "reading weights")
    assert up[1] == Ready(INFO, 5, 6)
    assert up[-1] == Bye()
    assert engine.running == ["r"]
    assert engine.aborted == ["other"]
    assert engine.is_closed


def test_steps_come_up_as_they_are_and_memory_when_it_changed() -> None:
    engine = Obedient()
    up, down = Up(), Inbox[Command]()
    loop = _Loop(engine, down, up, Counters())  # type: ignore[arg-type]
    down.put(LOAD)
    down.put(generate())
    assert loop._turn() is None
    assert up[2:] == [(("r", "t", (1,), None, "stop", None),), Memory(5, 6)]
    down.put(Abort("nobody"))
    loop._turn()
    assert up[4:] == []


@pytest.mark.parametrize(
    ("error", "code"), [(ModelInvalid("cut"), "model_invalid"), (KeyError("lm_head"), "model_invalid")]
)
def test_a_load_that_fails_ends_the_worker_with_a_reason(error: Exception, code: str) -> None:
    engine = Obedient()
    engine.load_error = error
    exit_code, up = run(engine, LOAD)
    assert exit_code is ExitCode.LOAD_FAILED
    assert isinstance(up[-1], LoadFailed)
    assert up[-1].code == code


def test_a_request_that_cannot_be_taken_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Obedient()
    engine.add_error = ContextLengthExceeded("9 > 8", field="prompt")
    _, up = run(engine, LOAD, generate("long"), Unload())
    assert RequestFailed("long", "context_length_exceeded", "9 > 8", "prompt") in up
    engine.add_error = ZeroDivisionError("a bug")
    code, up = run(engine, LOAD, generate("bug"), Unload())
    assert RequestFailed("bug", "generation_failed", "its beginning failed: ZeroDivisionError: a bug") in up
    assert code is ExitCode.OK
    logged = capsys.readouterr().err
    assert logged.startswith("request bug: its beginning failed: ZeroDivisionError\n  File ")
    assert "a bug" not in logged  # a library's words may be the prompt's
