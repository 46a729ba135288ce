"""What was loaded, on disk, so that a daemon that died can load it again; and when not to, because it keeps dying.

Written whole or not at all. Must not decide about running models, and must not fail the daemon: a disk that is full
costs the memory of it, nothing else. Times here are the wall's: they are compared across processes and reboots.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from forgellm import private_file, typed
from forgellm.errors import ForgeLLMError
from forgellm.supervisor.status import PoolStatus

log = logging.getLogger(__name__)

VERSION = 1
DIRTY_WINDOW_S = 15 * 60.0
DIRTY_LIMIT = 2
CHECK_S = 0.5


class Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """One load, as it can be asked for again: the arguments of Supervisor.load()."""

    model: str
    adapter_path: str | None = None
    replicas: int = 1
    context_length: int | None = None
    max_kv_size: int | None = None
    ttl_s: float | None = None
    pin: bool = False
    system_prompt: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The file. `dirty_ends`: when earlier daemons were found to have died, latest last."""

    version: int = VERSION
    is_clean: bool = False
    models: tuple[Remembered, ...] = ()
    dirty_ends: tuple[float, ...] = ()


class Restore(msgspec.Struct, frozen=True, kw_only=True):
    """What to do at the start. `reason` is for people; "" if the last end was clean."""

    models: tuple[Remembered, ...] = ()
    is_held_back: bool = False
    reason: str = ""


def decide(last: Record, now: float) -> tuple[Restore, Record]:
    """What to load again after an end like `last`'s, and what to remember from now on. `now` in seconds of wall time.

    After a crash: what was loaded. After two of them within 15 minutes: nothing, for one of the models may be why.
    """
    if last.is_clean:
        return Restore(), Record()
    recent = (*(end for end in last.dirty_ends if 0 <= now - end < DIRTY_WINDOW_S), now)
    names = ", ".join(model.model for model in last.models) or "nothing"
    if len(recent) >= DIRTY_LIMIT:
        why = f"the daemon died {len(recent)} times in {DIRTY_WINDOW_S / 60:.0f} minutes, with {names} loaded"
        return Restore(is_held_back=True, reason=f"{why}; nothing is loaded by itself"), Record(dirty_ends=recent)
    restore = Restore(models=last.models, reason=f"the daemon died with {names} loaded")
    return restore, Record(dirty_ends=recent, models=last.models)


def remembered(status: PoolStatus) -> tuple[Remembered, ...]:
    """What is loaded, or on its way."""
    return tuple(
        Remembered(
            model=model.name,
            adapter_path=model.adapter_path,
            replicas=len(model.workers),
            context_length=model.context_length,
            max_kv_size=model.max_kv_size,
            ttl_s=model.ttl_s,
            pin=model.pin,
            system_prompt=model.system_prompt,
        )
        for model in status.models
        if model.error is None
    )


class Journal:
    """One file of one daemon. begin(), then note() at each change, then end()."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record = self._last = Record()
        self._is_failing = False

    def begin(self, now: float) -> Restore:
        """Read how the last daemon ended; decide; start a new record. A file that cannot be read is moved aside."""
        self._last = self._read()
        restore, self._record = decide(self._last, now)
        self._write()
        return restore

    @contextmanager
    def starting(self, now: float) -> Iterator[Restore]:
        """begin(), and the start itself. One that is refused with a sentence was no crash: the next start finds what
        this one found."""
        try:
            yield self.begin(now)
        except ForgeLLMError:
            self._record = self._last
            self._write()
            raise

    def note(self, models: tuple[Remembered, ...]) -> None:
        """Remember what is loaded now, if it changed. Something loaded after a held-back start clears the history."""
        if models != self._record.models:
            ends = () if len(self._record.dirty_ends) >= DIRTY_LIMIT and models else self._record.dirty_ends
            self._record = Record(models=models, dirty_ends=ends)
            self._write()

    def end(self) -> None:
        """The daemon ends as it should."""
        self._record = Record(is_clean=True)
        self._write()

    def _read(self) -> Record:
        try:
            record = typed.decode(self._path.read_bytes(), Record)
            if record.version != VERSION:
                raise msgspec.ValidationError(f"it is of version {record.version}, and this program knows {VERSION}")
        except FileNotFoundError:
            return Record(is_clean=True)
        except (OSError, msgspec.MsgspecError) as error:
            aside = self._path.with_suffix(".unreadable")
            log.warning("the journal %s cannot be read, and is kept as %s: %s", self._path, aside.name, error)
            try:
                self._path.replace(aside)
            except OSError as failure:
                log.warning("nor can it be moved: %s", failure)
            return Record(is_clean=True)
        return record

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            private_file.replace(self._path, msgspec.json.format(msgspec.json.encode(self._record)))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                lost = "the journal %s cannot be written, so after a crash nothing would be restored: %s"
                log.warning(lost, self._path, error)
            self._is_failing = True


class JournalKeeper:
    """A thread that notes what a pool has loaded, twice a second; owned by the daemon."""

    def __init__(self, journal: Journal, status: Callable[[], PoolStatus]) -> None:
        self._journal = journal
        self._status = status
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop noting, and mark the end as clean."""
        self._stop.set()
        self._thread.join(5.0)
        self._journal.end()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_S):
            status = self._status()
            if not status.is_stopping:
                self._journal.note(remembered(status))
