"""`forgellm selftest`: does to a private pool what can happen to a worker, and tells what each fault cost.

Must not touch a running daemon, and must not hide a loss: every answer is compared with the undisturbed one.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import click
import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from forgellm import Generation, ModelConfig, Settings, Supervisor
from forgellm.errors import ForgeLLMError
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus
from forgellm.supervisor.budget import size
from forgellm.supervisor.memory import footprint_bytes

STREAMS = 4
MAX_TOKENS = 48
DEADLINE_S = 300.0
GONE_S = 5.0
POLL_S = 0.001
ECHO = {"tokens_per_s": 40.0, "prefill_s": 0.3, "load_s": 0.5, "allocate_bytes": 64 << 20}
PATIENCE = {"backoff_initial_s": 0.0, "backoff_max_s": 0.0, "hang_timeout_s": 3.0, "port": 0}
"""Faster respawns than a real pool's after so many deaths, and a hang that does not take all day."""

TEXT = "the worker is gone and comes back while this text goes on as if nothing had happened to it at all"

Phase = Literal["idle", "prefill", "stream", "load"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal to the worker, and when it comes."""

    name: str
    number: signal.Signals
    phase: Phase


FAULTS = (
    Fault("SIGKILL idle", signal.SIGKILL, "idle"),
    Fault("SIGKILL in prefill", signal.SIGKILL, "prefill"),
    Fault("SIGKILL in mid-stream", signal.SIGKILL, "stream"),
    Fault("SIGKILL in mid-load", signal.SIGKILL, "load"),
    Fault("SIGSEGV in mid-stream", signal.SIGSEGV, "stream"),
    Fault("SIGTERM in mid-stream", signal.SIGTERM, "stream"),
    Fault("SIGSTOP (a hang)", signal.SIGSTOP, "stream"),
)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one fault cost. `detected_ms`: until the pool knew; `recovered_s`: until a new life was ready to serve.

    `lost` of the `requests` did not end with the undisturbed text. `memory_returned_bytes` is what the system charged
    the old process for, once that is gone; None if it is not."""

    fault: str
    detected_ms: float
    recovered_s: float
    requests: int
    lost: int
    memory_returned_bytes: int | None

    @property
    def is_good(self) -> bool:
        return self.lost == 0 and self.memory_returned_bytes is not None


def run_selftest(settings: Settings, model: str | None, *, as_json: bool) -> int:
    """Run every fault; returns the exit code, 0 only if nothing was lost and all memory came back."""
    outcomes = []
    with _private(settings, model) as (pool, name):
        bench = Bench(pool, name)
        for fault in FAULTS:
            if not as_json:
                click.echo(f"{fault.name} …", err=True)
            outcomes.append(bench.run(fault))
    is_good = all(outcome.is_good for outcome in outcomes)
    if as_json:
        click.echo(msgspec.json.encode({"ok": is_good, "model": model or "echo", "faults": outcomes}).decode())
    else:
        _show(outcomes)
        click.echo("nothing was lost" if is_good else "Error: the self-test failed: see the table", err=not is_good)
    return 0 if is_good else 1


class Bench:
    """A loaded model, and what it answers when nobody disturbs it."""

    def __init__(self, pool: Supervisor, model: str) -> None:
        self._pool = pool
        self._model = model
        pool.load(model, timeout_s=DEADLINE_S)
        self._undisturbed = [generation.result().text for generation in self._ask()]

    def run(self, fault: Fault) -> Outcome:
        """One fault, while streams run, or, if idle, just before they do. Raises ForgeLLMError if it never recovers."""
        generations = [] if fault.phase == "idle" else self._ask()
        self._reach(fault.phase, generations)
        old = self._worker()
        assert old.pid is not None  # noqa: S101 - for mypy: it was waited for
        held = footprint_bytes(old.pid) or old.memory.footprint_bytes
        began = time.monotonic()
        os.kill(old.pid, fault.number)
        _wait(lambda: self._worker().life != old.life, "the fault was not noticed")
        detected = time.monotonic()
        self._wait_ready()
        recovered = time.monotonic()
        texts = [_text(generation) for generation in generations or self._ask()]
        lost = sum(text != expected for text, expected in zip(texts, self._undisturbed, strict=True))
        return Outcome(
            fault=fault.name,
            detected_ms=round((detected - began) * 1000, 1),
            recovered_s=round(recovered - began, 3),
            requests=len(texts),
            lost=lost,
            memory_returned_bytes=held if _is_gone(old.pid) else None,
        )

    def _ask(self) -> list[Generation]:
        prompts = [f"{number} {TEXT}; {TEXT}; {TEXT}" for number in range(STREAMS)]
        return [self._pool.generate(self._model, prompt, temperature=0.0, max_tokens=MAX_TOKENS) for prompt in prompts]

    def _reach(self, phase: Phase, generations: list[Generation]) -> None:
        """Wait for the moment at which the fault shall come."""
        if phase == "prefill":
            _wait(lambda: self._worker().in_flight == len(generations), "the requests did not start")
        elif generations:
            _wait(lambda: all(g.time_to_first_token_s is not None for g in generations), "no first token came")
        if phase == "load":
            first = self._worker()
            assert first.pid is not None  # noqa: S101 - for mypy: it is streaming
            os.kill(first.pid, signal.SIGKILL)
            _wait(lambda: self._worker().life != first.life and self._worker().pid is not None, "no new life began")

    def _worker(self) -> WorkerStatus:
        model = self._pool.status().model(self._model)
        assert model is not None  # noqa: S101 - for mypy: it was loaded
        return model.workers[0]

    def _wait_ready(self) -> None:
        _wait(lambda: self._worker().state is WorkerState.READY, "no new life became ready")


@contextmanager
def _private(settings: Settings, model: str | None) -> Iterator[tuple[Supervisor, str]]:
    """A pool of our own: the user's model, or the echo engine, which needs none."""
    name = model or "echo"
    settings = msgspec.structs.replace(settings, **PATIENCE)
    with tempfile.TemporaryDirectory() as logs:
        settings = msgspec.structs.replace(settings, log_dir=logs)
        if model is None:
            settings = msgspec.structs.replace(settings, models={name: ModelConfig(source="echo", options=dict(ECHO))})
        with Supervisor(settings) as pool:
            yield pool, name


def _text(generation: Generation) -> str | None:
    """The whole answer, or None if it ended in an error."""
    try:
        return generation.result().text
    except ForgeLLMError:
        return None


def _is_gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(GONE_S)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise ForgeLLMError(f"{otherwise} within {DEADLINE_S:.0f} s")
        time.sleep(POLL_S)


def _show(outcomes: list[Outcome]) -> None:
    table = Table("fault", "detected ms", "recovered s", "lost", "memory returned")
    for outcome in outcomes:
        held = outcome.memory_returned_bytes
        returned = "not: still there" if held is None else size(held)
        lost = f"{outcome.lost} of {outcome.requests}"
        table.add_row(outcome.fault, f"{outcome.detected_ms:.1f}", f"{outcome.recovered_s:.2f}", lost, returned)
    Console().print(table)
