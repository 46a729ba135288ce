"""All worker processes that exist: starts them, signals them, notices their ends. Used by the supervisor's thread only.

Decides nothing: who is started, signalled or buried is the pool's word.
"""

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from forgellm.config import Settings
from forgellm.messages import Command, EngineName
from forgellm.supervisor.clocks import Pulse
from forgellm.supervisor.process import SEARCHED_BYTES, Guardian, Lost, OnEvent, WorkerProcess, describe_exit
from forgellm.supervisor.restart import cause_of_exit, gpu_oom_line
from forgellm.supervisor.slots import DeathCause

log = logging.getLogger("forgellm.supervisor")

CHECK_S = 1.0
REAP_S = 0.002
LINGER_S = 1.0
KEPT_LOGS = 20
FAULT = 1  # the exit code that stands for a worker which broke its protocol, and was killed for it


@dataclass(slots=True)
class _Dying:
    """A worker whose end began: its channel closed, or its process is gone, and soon both."""

    deadline: float
    is_silent: bool  # its channel has ended
    verdict: str = ""  # why we killed it; nothing outside did


@dataclass(frozen=True, slots=True)
class Buried:
    """The end of a worker: its exit code, the cause as far as that and its log say, and both in words."""

    life: int
    exit_code: int
    cause: DeathCause
    words: str


class Crew:
    """Processes by life."""

    def __init__(self, settings: Settings, on_event: OnEvent) -> None:
        self._settings = settings
        self._on_event = on_event
        self._processes: dict[int, WorkerProcess] = {}
        self._dying: dict[int, _Dying] = {}
        self._next_check = 0.0
        self._pulses: dict[int, Pulse] | None = None
        settings.log_path.mkdir(parents=True, exist_ok=True)
        _prune_logs(settings.log_path)
        self.guardian = Guardian()

    def spawn(self, life: int, engine: EngineName) -> None:
        """Raises OSError if the system cannot start a process now."""
        process = WorkerProcess(
            life,
            engine,
            log_dir=self._settings.log_path,
            cache_dir=self._settings.cache_path,
            fast_blas=self._settings.fast_blas,
            on_event=self._on_event,
        )
        self._processes[life] = process
        self.guardian.add(process.pid)

    def send(self, life: int, command: Command) -> None:
        if life in self._processes:
            try:
                self._processes[life].send(command)
            except RuntimeError:  # no thread for its channel's feeder: it will never hear anything
                log.exception("a worker cannot be told anything, and is killed")
                self._processes[life].signal(signal.SIGKILL)

    def signal(self, life: int, number: int) -> None:
        if life in self._processes:
            self._processes[life].signal(number)

    def handled(self, life: int) -> None:
        """An event of this worker has been handled."""
        if life in self._processes:
            self._processes[life].handled()

    def pids(self) -> dict[int, int]:
        """{life: pid}; safe to call from any thread."""
        return {life: process.pid for life, process in list(self._processes.items())}

    def lost(self, life: int, reason: Lost, now: float) -> None:
        """A worker's channel ended: its process is gone, or goes now."""
        process = self._processes.get(life)
        if process is not None:
            verdict = f"the worker said something that is no event ({reason}) and was killed" if reason else ""
            if verdict:
                process.signal(signal.SIGKILL)
            self._dying[life] = _Dying(now + LINGER_S, is_silent=True, verdict=verdict)

    def reap(self, now: float) -> list[Buried]:
        """Bury whoever is gone. Never blocks."""
        if now >= self._next_check:
            self._next_check = now + CHECK_S
            self._check(now)
        buried = []
        for life, dying in list(self._dying.items()):
            process = self._processes[life]
            exit_code = process.poll()
            if exit_code is None:
                if now >= dying.deadline:
                    dying.deadline = now + LINGER_S
                    dying.verdict = dying.verdict or "the worker closed its channel, lived on, and was killed"
                    process.signal(signal.SIGKILL)
            elif dying.is_silent or now >= dying.deadline:
                buried.append(_buried(process, exit_code, dying.verdict))
                self.guardian.remove(process.pid)
                process.close()
                del self._processes[life], self._dying[life]
        return buried

    def pulses(self) -> dict[int, Pulse] | None:
        """What the counters of all workers say, once after each of reap()'s checks; else None."""
        pulses, self._pulses = self._pulses, None
        return pulses

    def next_check(self) -> float:
        """When reap() is next worth calling (monotonic)."""
        return 0.0 if self._dying else self._next_check

    def kill_all(self) -> None:
        """The last resort of a supervisor that must end now."""
        for process in self._processes.values():
            process.signal(signal.SIGKILL)

    def close(self) -> None:
        for process in self._processes.values():
            process.stop_reading()
        self.guardian.close()

    def _check(self, now: float) -> None:
        """The backstop, once a second: deaths whose EOF somebody holds back, counters, logs that grew, the guardian."""
        self._pulses = {life: Pulse(*p.pulse(), str(p.log_path)) for life, p in self._processes.items()}
        for life, process in self._processes.items():
            process.cap_log(self._settings.log_bytes)
            if life not in self._dying and process.poll() is not None:
                process.kill_group()  # whoever holds its pipes; the EOF follows
                self._dying[life] = _Dying(now + LINGER_S, is_silent=False)
        self.guardian.ensure()


def _buried(process: WorkerProcess, exit_code: int, verdict: str) -> Buried:
    if verdict:
        return Buried(process.life, FAULT, cause_of_exit(FAULT), verdict)
    log = process.tail(SEARCHED_BYTES)
    if line := gpu_oom_line(exit_code, log):
        return Buried(process.life, exit_code, "gpu_oom", f"the worker ran out of GPU memory [it said: {line}]")
    return Buried(process.life, exit_code, cause_of_exit(exit_code), describe_exit(exit_code, log))


def _prune_logs(folder: Path) -> None:
    """Keep the newest logs of earlier runs."""
    logs = sorted(folder.glob("worker-*.log"), key=os.path.getmtime, reverse=True)
    for log in logs[KEPT_LOGS:]:
        log.unlink(missing_ok=True)
