"""A worker's life: bootstrap, the loop of commands and steps, and the exit codes. Knows no model and no supervisor.

Runs in a process of its own. The engine owns the main thread (mlx streams are thread-local); one more thread reads
commands, so that the end of the supervisor is noticed even while the main thread computes, and one beats.
"""

import contextlib
import ctypes
import faulthandler
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from enum import IntEnum
from multiprocessing.queues import Queue, SimpleQueue
from pathlib import Path
from typing import assert_never

from forgellm.errors import ForgeLLMError
from forgellm.inbox import Inbox
from forgellm.messages import (
    Abort,
    Bye,
    Command,
    EngineName,
    Event,
    Generate,
    Hello,
    Imported,
    Integrity,
    Load,
    LoadFailed,
    Loading,
    Memory,
    Ready,
    RequestFailed,
    TrimCache,
    Unload,
)
from forgellm.worker import output
from forgellm.worker.engine import Engine, failed
from forgellm.worker.pulse import Counters

MEMORY_REPORT_S = 1.0
OOM_SCORE = 300
"""Thousandths of the memory there is, or of the cgroup's limit, that count as this process's besides its own: as a
browser does for its renderers (proc_pid_oom_score_adj(5))."""
GATHER_GAP_S = 0.010
"""Requests of one burst over HTTP were up to 4 ms apart on two quiet cores."""
GATHER_S = 0.03
GATHER_SHARE = 0.1
"""Of what the first step of the last burst took: no longer does the next one wait for company, which saves one step."""


class ExitCode(IntEnum):
    """How a worker ends by itself. A signal (negative code) or any other number is a crash."""

    OK = 0
    IMPORT_FAILED = 64
    LOAD_FAILED = 65
    ORPHANED = 66
    BAD_COMMAND = 67


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """All that a worker is told before its first command; small, because it travels in the start pipe."""

    life: int
    engine: EngineName
    supervisor_pid: int
    log_path: str
    cache_dir: str
    fast_blas: bool


def main(boot: Boot, down: "Queue[Command]", up: "SimpleQueue[Event]", counters: Counters) -> None:
    """The target of the process. Never returns: leaves through os._exit, so that no library's exit hook can hang."""
    code: int = ExitCode.IMPORT_FAILED
    try:
        _detach(boot)
        down._writer.close()  # type: ignore[attr-defined]  # only then is the supervisor's death an EOF here
        up._reader.close()  # type: ignore[attr-defined]  # private, as in supervisor/channel.py
        counters.start_beating()
        up.put(Hello(os.getpid()))
        commands: Inbox[Command] = Inbox()
        threading.Thread(target=_read_commands, args=(down, commands), name="commands", daemon=True).start()
        engine = _import_engine(boot, up)
        code = _Loop(engine, commands, up, counters).run() if engine else code
    except BaseException:  # noqa: BLE001 - the outermost edge: the log gets the reason, the supervisor an exit code
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _detach(boot: Boot) -> None:
    """Own session, own log, no stdin, nothing inheritable; die with the supervisor where the system offers it."""
    os.setsid()
    _die_with(boot.supervisor_pid)
    _die_before_the_supervisor()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a model's own code would ask "run it? [y/N]" here
    os.close(null)
    output.into(boot.log_path)
    for entry in Path("/dev/fd").iterdir():  # a grandchild must not hold our pipes open after our death
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            os.set_inheritable(int(entry.name), int(entry.name) <= 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the supervisor's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends even a thread that is deep in native code
    faulthandler.enable(file=sys.__stderr__ or 2)
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or 2, all_threads=True)


def _die_with(supervisor_pid: int) -> None:
    """Ask Linux for SIGKILL when the supervisor's starting thread ends; elsewhere the guardian does it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != supervisor_pid:  # it died before we could ask
        os._exit(ExitCode.ORPHANED)


def _die_before_the_supervisor() -> None:
    """Have Linux's OOM killer prefer this process: while a large worker's memory is not yet free, it kills one more."""
    with contextlib.suppress(OSError, ValueError):  # not Linux; or it may not be written here
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + OOM_SCORE)))


def _read_commands(down: "Queue[Command]", commands: Inbox[Command]) -> None:
    while True:
        try:
            commands.put(down.get())
        except (EOFError, OSError):
            os._exit(ExitCode.ORPHANED)
        except Exception:  # noqa: BLE001 - unpickling can raise anything; a worker that misses commands must not live
            traceback.print_exc()
            os._exit(ExitCode.BAD_COMMAND)


def _import_engine(boot: Boot, up: "SimpleQueue[Event]") -> Engine | None:
    try:
        if boot.engine == "echo":
            from forgellm.worker.echo import EchoEngine  # noqa: PLC0415 - a worker imports its own engine only

            engine: Engine = EchoEngine()
        else:
            from forgellm.worker import blas  # noqa: PLC0415 - as above

            # Names were resolved before: transformers must not reach for the network.
            os.environ["HF_HUB_OFFLINE"] = "1"
            # Must come before mlx is imported: the first library that defines cblas_* wins.
            description = blas.activate(Path(boot.cache_dir), boot.fast_blas)
            if boot.engine == "embed":
                from forgellm.worker.embed_engine import EmbedEngine  # noqa: PLC0415 - after BLAS

                engine = EmbedEngine(blas=description)
            else:
                from forgellm.worker.mlx_engine import MLXEngine  # noqa: PLC0415 - after BLAS

                engine = MLXEngine(blas=description)
    except Exception as error:  # noqa: BLE001 - a broken install raises anything; its text is what the user needs
        traceback.print_exc()
        up.put(LoadFailed("engine_unavailable", f"the {boot.engine} engine cannot be imported: {error}"))
        return None
    up.put(Imported())
    return engine


class _Loop:
    """Commands in, events out, one step of the engine at a time."""

    def __init__(self, engine: Engine, commands: Inbox[Command], up: "SimpleQueue[Event]", counters: Counters) -> None:
        self._engine = engine
        self._commands = commands
        self._up = up
        self._counters = counters
        self._is_loaded = False
        self._memory = (0, 0)
        self._next_report = 0.0
        self._gather_s = GATHER_S

    def run(self) -> ExitCode:
        while True:
            code = self._turn()
            if code is not None:
                return code

    def _turn(self) -> ExitCode | None:
        """All commands that wait, then one step. With nothing to do: wait for a command, and a moment for its like.

        A burst of requests reaches an idle worker one by one; begun one by one, the first prompt would be read alone,
        and all others wait for it (measured: 8 requests over HTTP, demo model: first token 4.1 s instead of 2.6 s)."""
        is_idle = not self._engine.has_work()
        wait_s, gather_until = MEMORY_REPORT_S if is_idle else 0.0, math.inf
        while True:
            try:
                command = self._commands.take(wait_s)
            except queue.Empty:
                break
            code = self._obey(command)
            self._counters.step()
            if code is not None:
                return code
            now = time.monotonic()
            gather_until = min(gather_until, now + self._gather_s)
            wait_s = min(GATHER_GAP_S, gather_until - now) if is_idle and isinstance(command, Generate) else 0.0
        if self._engine.has_work():
            started = time.monotonic()
            chunks, news = self._engine.step()
            self._counters.step()
            if is_idle:
                self._gather_s = min(GATHER_S, GATHER_SHARE * (time.monotonic() - started))
            for item in news:
                self._up.put(item)
            if chunks:
                self._up.put(chunks)
        self._report_memory()
        return None

    def _obey(self, command: Command) -> ExitCode | None:
        match command:
            case Load():
                return self._load(command)
            case Generate(request):
                try:
                    self._engine.add(request)
                except ForgeLLMError as error:
                    self._up.put(RequestFailed(request.request_id, error.code, error.message, error.field))
                except Exception as error:  # noqa: BLE001 - one request's failure must not end the others'
                    self._up.put(failed(request.request_id, "its beginning", error))
            case Abort(request_id):
                self._engine.abort(request_id)
            case TrimCache():
                self._engine.trim_caches()
            case Unload():
                self._engine.close()
                self._up.put(Bye())
                return ExitCode.OK
            case _:
                assert_never(command)
        return None

    def _load(self, command: Load) -> ExitCode | None:
        try:
            integrity = self._checked(command)
            info = self._engine.load(command.source, command.options, self._progress)
        except ForgeLLMError as error:
            self._up.put(LoadFailed(error.code, error.message))
            return ExitCode.LOAD_FAILED
        except Exception as error:  # noqa: BLE001 - broken files raise anything; the text is what the user needs
            traceback.print_exc()
            self._up.put(LoadFailed("model_invalid", f"{command.source.name} cannot be loaded: {_describe(error)}"))
            return ExitCode.LOAD_FAILED
        self._is_loaded = True
        self._up.put(Ready(replace(info, integrity=integrity), *self._engine.memory()))
        return None

    def _checked(self, command: Load) -> Integrity:
        """See to it that the files are those that were resolved, at each life, and whole, once."""
        source, options = command.source, command.options
        if source.kind == "demo":
            return "verified"  # demo.fetch() compares its sha256
        if not source.files:
            return "none"
        from forgellm.catalog.integrity import check_unchanged, verify  # noqa: PLC0415 - an idle spare needs it not

        check_unchanged(source)
        if not options.verify_weights:
            return "unverified"
        return verify(source.files, Path(options.cache_dir), self._progress)

    def _progress(self, done: float, stage: str) -> None:
        self._counters.step()
        self._up.put(Loading(done, stage))

    def _report_memory(self) -> None:
        now = time.monotonic()
        if self._is_loaded and now >= self._next_report:
            self._next_report = now + MEMORY_REPORT_S
            memory = self._engine.memory()
            if memory != self._memory:
                self._memory = memory
                self._up.put(Memory(*memory))


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
