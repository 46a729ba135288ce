"""One life of a worker: its process, its channel, its reader thread, its log. The only place that starts workers.

Must not decide anything: it starts, sends, signals and reports. All methods are called by the supervisor's one thread,
because Linux kills a worker when the *thread* that started it ends.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context, spawn
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

from forgellm.messages import Command, EngineName, Event
from forgellm.supervisor import guardian
from forgellm.supervisor.channel import Channel, ChannelClosed, ProtocolError
from forgellm.worker.main import Boot, ExitCode, main
from forgellm.worker.pulse import Counters

CONTEXT: SpawnContext = get_context("spawn")
NAME = "forgellm-worker-"
TAIL_BYTES = 2000
KILL_WAIT_S = 1.0
UNHANDLED = 64  # events of one worker that the supervisor has not looked at; with more its pipe fills, and it waits
SEARCHED_BYTES = 32_000  # after what a library says last come the stacks of all threads


class Lost(str):
    """Why a worker's channel ended: "" for an EOF, else what was wrong with what it said."""


OnEvent = Callable[[int, Event | Lost], None]


def _without_main(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """multiprocessing re-imports the caller's `__main__` in every child: that would load flask into each worker, and
    start a script without a main guard over again. Our workers need none of it."""

    def preparation_data(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith(NAME):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    return preparation_data


setattr(spawn, "get_preparation_data", _without_main(spawn.get_preparation_data))  # noqa: B010 - mypy: a function


def log_stem(log_dir: Path) -> str:
    """What the paths of this process's worker logs begin with; the life and ".log" follow."""
    return str(log_dir / f"worker-{os.getpid()}-")


class WorkerProcess:
    """A started worker. `on_event` is called from its reader thread, with a Lost as the last call."""

    def __init__(
        self, life: int, engine: EngineName, *, log_dir: Path, cache_dir: Path, fast_blas: bool, on_event: OnEvent
    ) -> None:
        self.life = life
        self.log_path = Path(f"{log_stem(log_dir)}{life}.log")
        self._on_event = on_event
        self._room = threading.Semaphore(UNHANDLED)
        self._handled = 0
        self._is_over = False
        self._channel = Channel(CONTEXT)
        self._counters = Counters()
        boot = Boot(
            life=life,
            engine=engine,
            supervisor_pid=os.getpid(),
            log_path=str(self.log_path),
            cache_dir=str(cache_dir),
            fast_blas=fast_blas,
        )
        self._process = CONTEXT.Process(
            target=main,
            args=(boot, self._channel.down, self._channel.up, self._counters),
            name=f"{NAME}{life}",
            daemon=True,
        )
        try:
            self._process.start()
        except OSError:
            self._channel.close_worker_ends()
            self._channel.close()
            raise
        self._channel.close_worker_ends()
        self.pid: int = self._process.pid or 0
        self._reader = threading.Thread(target=self._read, name=f"reader-{life}", daemon=True)
        try:
            self._reader.start()
        except RuntimeError as error:  # the system gave a process, and no thread for it
            self._process.kill()
            self._process.join(KILL_WAIT_S)
            self._channel.close()
            self._process.close()
            del self._reader  # it refers to this object, which would hold descriptors until a garbage collection
            raise BlockingIOError(errno.EAGAIN, str(error)) from error

    def send(self, command: Command) -> None:
        self._channel.send(command)

    def signal(self, number: int) -> None:
        """To the worker's whole group, or to it alone if it has not made its group yet. A dead one is left alone."""
        if self._process.exitcode is not None:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self._process.kill() if number == signal.SIGKILL else os.kill(self.pid, number)

    def handled(self) -> None:
        """One of its events has been handled. A reader that waits is woken once for many: that costs less."""
        self._handled += 1
        if self._handled == UNHANDLED // 2:
            self._handled = 0
            self._room.release(UNHANDLED // 2)

    def stop_reading(self) -> None:
        """Nobody will handle its events any more: a reader that waits for that ends."""
        self._is_over = True
        self._room.release()

    def poll(self) -> int | None:
        """Its exit code (negative: a signal) once it is gone, else None. Never blocks."""
        self._process.join(0.0)
        return self._process.exitcode

    def pulse(self) -> tuple[int, int]:
        """(beats, steps): what its heart and its loop have counted so far."""
        return self._counters.read()

    def tail(self, size_bytes: int = TAIL_BYTES) -> str:
        """The last lines of its log, for error messages."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - size_bytes))
                return log.read(size_bytes).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def cap_log(self, limit_bytes: int) -> None:
        """Cut the log back to its tail if it outgrew the limit; the worker appends, so it goes on after that."""
        try:
            if self.log_path.stat().st_size > limit_bytes:
                kept = self.tail()
                os.truncate(self.log_path, 0)
                with self.log_path.open("a", encoding="utf-8") as log:
                    log.write(f"[cut at {limit_bytes} bytes]\n{kept}\n")
        except OSError:
            return  # a log is not worth a failure

    def kill_group(self) -> None:
        """After poll() gave an exit code: a child of the worker may still hold its pipes open."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody left; macOS: EPERM for zombies
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """After poll() gave an exit code: end the reader thread and free everything."""
        self.kill_group()
        self.stop_reading()
        self._reader.join(1.0)
        self._channel.close()
        self._process.close()

    def _read(self) -> None:
        reason = Lost()
        try:
            while True:
                event = self._channel.receive()
                self._room.acquire()  # until the supervisor has caught up; stop_reading() ends it
                if self._is_over:
                    return
                self._on_event(self.life, event)
        except ChannelClosed:
            pass
        except ProtocolError as error:
            reason = Lost(error)
        self._on_event(self.life, reason)


class Guardian:
    """The supervisor's side of guardian.py: keeps it informed, and alive."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def add(self, pid: int) -> None:
        self._pids.add(pid)
        self._tell(f"+{pid}")

    def remove(self, pid: int) -> None:
        self._pids.discard(pid)
        self._tell(f"-{pid}")

    def ensure(self) -> None:
        """Start a new one, with the whole list, if somebody killed it."""
        if self._process.poll() is not None:
            if self._process.stdin:
                self._process.stdin.close()
            self._process = self._start()
            for pid in self._pids:
                self._tell(f"+{pid}")

    def close(self) -> None:
        self._tell("quit")
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_WAIT_S)

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it is dead; ensure() starts the next one within a second
            if self._process.stdin:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()


_WORDS = {
    ExitCode.OK: "exited without a word",
    ExitCode.IMPORT_FAILED: "could not import its engine",
    ExitCode.LOAD_FAILED: "could not load its model",
    ExitCode.ORPHANED: "lost its supervisor",
    ExitCode.BAD_COMMAND: "could not read a command",
    -signal.SIGKILL: "was killed (SIGKILL); perhaps out of memory, or somebody's kill -9",
    -signal.SIGTERM: "was ended from outside (SIGTERM)",
    -signal.SIGABRT: "aborted (SIGABRT); its libraries gave up, perhaps out of GPU memory",
    -signal.SIGSEGV: "crashed (SIGSEGV)",
    -signal.SIGBUS: "crashed (SIGBUS); perhaps its model's files changed on the disk",
}


_CRASH = re.compile(
    r'^Fatal Python error: .*?^Current thread [^\n]*\n +File "(?:[^"\n]*/)?([^"\n]+)", ([^\n]*)',
    re.DOTALL | re.MULTILINE,
)
"""What Python's faulthandler writes before a signal ends it; the place is that of the thread that crashed."""


def describe_exit(exit_code: int, log: str) -> str:
    """An exit code in words for people, with where it crashed, and the last line that the worker itself logged."""
    if exit_code in _WORDS:
        words = _WORDS[exit_code]
    elif exit_code < 0:
        words = f"was ended by signal {-exit_code}"
    else:
        words = f"exited with code {exit_code}"
    crash = _CRASH.search(log)
    lines = (log[: crash.start()] if crash else log).strip().splitlines()
    more = [f"at {crash[1]}, {crash[2]}"] if crash else []
    more += [f"last log line: {lines[-1]}"] if lines else []
    return f"the worker {words}" + (f" [{'; '.join(more)}]" if more else "")
