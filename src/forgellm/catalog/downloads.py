"""The pulls of one daemon: each in a process of its own, a few at a time, known by job ids until they are forgotten.

Must not import huggingface_hub or go to the network: the processes do. They end with whoever holds this.
"""

import contextlib
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from forgellm.catalog import removal
from forgellm.catalog.pulling import Done, Failed, News, Order, Planned, Progress, model_name, parse
from forgellm.catalog.removal import Removed
from forgellm.errors import ForgeLLMError, HubUnavailable, JobNotFound, ModelInUse, QueueFull, ShuttingDown, Unavailable

log = logging.getLogger(__name__)

RUNNING = 4
KEPT = 64
SILENCE_S = 180.0  # a process that says nothing for so long is stopped: it speaks at every block it gets
TERM_S = 2.0  # from SIGTERM to SIGKILL
KILL_S = 1.0  # from SIGKILL to nobody waiting any more
SPEED_WINDOW = 25  # reports, about 5 s

JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED = frozenset({"done", "failed", "cancelled"})

NEWS: "msgspec.json.Decoder[News]" = msgspec.json.Decoder(News)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A pull as it is now. `model`: what it is loaded by when it is done. `commit` and `total_bytes` are None until the
    hub has answered. `bytes_per_s` and `eta_s` are those of the last seconds, None when nothing moves. `created`: unix
    time. `error` and `error_code` say why it failed; `path` is the snapshot's folder once it is done."""

    id: str
    model: str
    repository: str
    revision: str
    state: JobState
    created: float
    stage: str = ""
    commit: str | None = None
    files: int | None = None
    total_bytes: int | None = None
    done_bytes: int = 0
    bytes_per_s: float | None = None
    eta_s: float | None = None
    path: str | None = None
    error: str | None = None
    error_code: str | None = None


@dataclass(slots=True)
class _Pull:
    """A job, and what runs for it."""

    job: Job
    process: "subprocess.Popen[bytes] | None" = None
    thread: threading.Thread | None = None
    reports: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SPEED_WINDOW))


class Downloads:
    """Pulls, and removals. All methods may be called from any thread; pull() returns at once.

    `user_of(folder)`: the loaded model whose files are below `folder`, if any."""

    def __init__(self, user_of: Callable[[Path], str | None] = lambda _: None) -> None:
        self._user_of = user_of
        self._pulls: dict[str, _Pull] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def pull(self, model: str, revision: str | None = None) -> Job:
        """Begin to fetch `ORG/NAME[@REVISION]`; the job that fetches it already, if there is one.

        Raises InvalidRequest for a name that no repository has, QueueFull when too many jobs wait."""
        order = parse(model, revision)
        with self._lock:
            if self._is_closed:
                raise ShuttingDown("the daemon is shutting down", retry_after_s=5.0)
            for pull in self._pulls.values():
                if (pull.job.repository, pull.job.revision) == (order.repository, order.revision) and _goes_on(pull):
                    return pull.job
            self._make_room()
            job = Job(
                id=f"pull-{uuid.uuid4().hex[:12]}",
                model=model_name(order),
                repository=order.repository,
                revision=order.revision,
                state="waiting",
                created=round(time.time(), 3),
            )
            self._pulls[job.id] = _Pull(job)
            self._start_waiting()
            return self._pulls[job.id].job

    def jobs(self) -> list[Job]:
        """All that are known, the oldest first."""
        with self._lock:
            return [pull.job for pull in self._pulls.values()]

    def job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        with self._lock:
            return self._pull(job_id).job

    def cancel(self, job_id: str) -> Job:
        """End a job, and return when its process is gone; one that has ended stays as it is. What came is kept for the
        next pull of the same files. Raises JobNotFound."""
        with self._lock:
            pull = self._pull(job_id)
            if not _goes_on(pull):
                return pull.job
            pull.job = replace(pull.job, state="cancelled", stage="", bytes_per_s=None, eta_s=None)
            process = pull.process
        if process is not None:
            _end(process)
        if pull.thread is not None:
            pull.thread.join(2 * TERM_S)
        return pull.job

    def remove(self, model: str) -> Removed:
        """Remove a repository from the cache; see removal.remove(). Raises ModelInUse while a job fetches it."""
        with self._lock:
            for pull in self._pulls.values():
                if pull.job.repository == model and _goes_on(pull):
                    raise ModelInUse(f"the job {pull.job.id} is fetching {model}; cancel it first", field="model")
        return removal.remove(model, self._user_of)

    def close(self) -> None:
        """End every job and its process. Idempotent; nothing can be pulled afterwards."""
        with self._lock:
            self._is_closed = True
            going_on = [job_id for job_id, pull in self._pulls.items() if _goes_on(pull)]
        for job_id in going_on:
            self.cancel(job_id)

    # With the lock held ----------------------------------------------------------------------------------------------

    def _pull(self, job_id: str) -> _Pull:
        if job_id not in self._pulls:
            raise JobNotFound(f"there is no job {job_id[:100]!r}; GET /api/jobs lists them", field="job_id")
        return self._pulls[job_id]

    def _make_room(self) -> None:
        """Forget the oldest that has ended, if as many are kept as may be."""
        if len(self._pulls) < KEPT:
            return
        ended = next((job_id for job_id, pull in self._pulls.items() if not _goes_on(pull)), None)
        if ended is None:
            raise QueueFull(f"{KEPT} pulls wait or run already; cancel one or wait", retry_after_s=60.0)
        del self._pulls[ended]

    def _start_waiting(self) -> None:
        running = sum(pull.job.state == "running" for pull in self._pulls.values())
        waiting = [pull for pull in self._pulls.values() if pull.job.state == "waiting"]
        for pull in waiting[: max(0, RUNNING - running)]:
            pull.job = replace(pull.job, state="running", stage="asking the hub")
            pull.thread = threading.Thread(target=self._run, args=(pull,), name=pull.job.id, daemon=True)
            try:
                pull.thread.start()
            except RuntimeError as error:  # the system has none to give
                pull.thread = None
                pull.job = _ended(pull.job, _failed(Unavailable(f"cannot start a thread for the pull: {error}")))

    # In the thread of a job ------------------------------------------------------------------------------------------

    def _run(self, pull: _Pull) -> None:
        outcome: Done | Failed = _failed(ForgeLLMError(f"the pull of {pull.job.model} broke off; the log says more"))
        try:
            outcome = self._carry_out(pull)
        except OSError as error:  # no process could be started, or it was gone before it had read its order
            outcome = _failed(Unavailable(f"cannot start a process for the pull: {error.strerror or error}"))
        finally:
            self._end(pull, outcome)

    def _carry_out(self, pull: _Pull) -> Done | Failed:
        with self._lock:
            if pull.job.state != "running":  # cancelled in the meantime
                return _failed(Unavailable("cancelled"))
            pull.process = process = _start(Order(pull.job.repository, pull.job.revision))
        try:
            for news in _news(process):
                match news:
                    case Done() | Failed():
                        return news
                    case Planned() | Progress():
                        with self._lock:
                            _report(pull, news, time.monotonic())
        finally:
            _end(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        return _failed(HubUnavailable(f"the process of the pull ended without a word (exit code {process.returncode})"))

    def _end(self, pull: _Pull, outcome: Done | Failed) -> None:
        with self._lock:
            pull.process = None
            if pull.job.state == "running":
                pull.job = _ended(pull.job, outcome)
            self._start_waiting()
            job = pull.job
        log.info("%s of %s: %s%s", job.id, job.model, job.state, f" ({job.error})" if job.error else "")


def _goes_on(pull: _Pull) -> bool:
    return pull.job.state not in ENDED


def _report(pull: _Pull, news: Planned | Progress, now: float) -> None:
    if pull.job.state != "running":
        return
    if isinstance(news, Planned):
        pull.job = replace(
            pull.job,
            commit=news.commit,
            files=news.files,
            total_bytes=news.total_bytes,
            done_bytes=news.done_bytes,
            stage="downloading",
        )
    else:
        pull.job = replace(pull.job, done_bytes=news.done_bytes, stage=news.stage)
    pull.reports.append((now, pull.job.done_bytes))
    speed, eta_s = _speed(pull.reports), None
    if speed and pull.job.total_bytes is not None:
        eta_s = round((pull.job.total_bytes - pull.job.done_bytes) / speed, 1)
    pull.job = replace(pull.job, bytes_per_s=speed, eta_s=eta_s)


def _speed(reports: "deque[tuple[float, int]]") -> float | None:
    (first_at, first), (last_at, last) = reports[0], reports[-1]
    return round((last - first) / (last_at - first_at), 1) if last_at > first_at and last > first else None


def _ended(job: Job, outcome: Done | Failed) -> Job:
    job = replace(job, stage="", bytes_per_s=None, eta_s=None)
    if isinstance(outcome, Done):
        return replace(job, state="done", path=outcome.path, done_bytes=job.total_bytes or job.done_bytes)
    return replace(job, state="failed", error=outcome.message, error_code=outcome.code)


def _failed(error: ForgeLLMError) -> Failed:
    return Failed(error.code, error.message)


def _start(order: Order) -> "subprocess.Popen[bytes]":
    """Its stdin stays open as long as this process lives: its end tells the pull to end, whatever the cause.

    Not with xet, whose downloads cannot be resumed by another process; the hub serves the same files over HTTP."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "forgellm.catalog.pull"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
        start_new_session=True,  # a terminal's Ctrl-C is for its owner to answer
    )
    assert process.stdin is not None  # noqa: S101 - for mypy: PIPE
    try:
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
    except OSError:
        _end(process)
        process.stdin.close()
        raise
    return process


def _news(process: "subprocess.Popen[bytes]") -> Iterator[News]:
    """What it says, until it ends or has been silent for too long."""
    assert process.stdout is not None  # noqa: S101 - for mypy: PIPE
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(SILENCE_S):
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                return
            *lines, said = (said + block).split(b"\n")
            for line in lines:
                yield NEWS.decode(line)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, then SIGKILL, each with a wait for its end. Both of a job's thread and a canceller may call it."""
    process.terminate()
    try:
        process.wait(TERM_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a disk that does not answer holds it
            process.wait(KILL_S)
