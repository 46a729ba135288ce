"""Who follows what happens, and what they have not read yet. Must not make the supervisor wait for any of them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from forgellm.supervisor.effects import Announce, Died, Effect, Evicted, Progressed

UNREAD = 256  # changes that a slow reader may leave unread, before it is dropped

Change = Announce | Died | Evicted | Progressed
Wants = Callable[[str], bool]


def model_of(change: Change) -> str:
    """The name of the model that it happened to."""
    return change.model if isinstance(change, Evicted) else change.worker.rpartition("#")[0]


class Watch:
    """One follower's side. take() until `has_ended`; close() when done, or use `with`."""

    def __init__(self, watches: "Watches", wants: Wants | None) -> None:
        self._watches = watches
        self._wants = wants
        self._unread: deque[Change] = deque()
        self._news = threading.Condition()
        self.is_lost = False  # it read too slowly, and misses changes from here on
        self.has_ended = False

    def take(self, timeout_s: float) -> list[Change]:
        """All changes since the last call, waiting up to `timeout_s` for the first; [] if there was none."""
        with self._news:
            if not self._unread and not self.has_ended:
                self._news.wait(timeout_s)
            changes = list(self._unread)
            self._unread.clear()
        return [each for each in changes if self._wants is None or self._wants(model_of(each))]

    def put(self, changes: Iterable[Change]) -> None:
        """The supervisor's side: never waits."""
        with self._news:
            if self.has_ended:
                return
            self._unread.extend(changes)
            if len(self._unread) > UNREAD:
                self._unread.clear()
                self.is_lost = self.has_ended = True
            self._news.notify_all()

    def end(self) -> None:
        """There will be no more changes."""
        with self._news:
            self.has_ended = True
            self._news.notify_all()

    def close(self) -> None:
        """Follow no longer. Idempotent."""
        self.end()
        self._watches.forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Watches:
    """All followers of one supervisor. Thread-safe."""

    def __init__(self) -> None:
        self._all: tuple[Watch, ...] = ()
        self._has_ended = False
        self._lock = threading.Lock()

    def begin(self, wants: Wants | None = None) -> Watch:
        """A new follower, of what happens from now on to the models that it wants to hear of; None: to all."""
        watch = Watch(self, wants)
        with self._lock:
            self._all = (*self._all, watch)
            has_ended = self._has_ended
        if has_ended:
            watch.end()
        return watch

    def forget(self, watch: Watch) -> None:
        with self._lock:
            self._all = tuple(each for each in self._all if each is not watch)

    def take(self, effects: Iterable[Effect]) -> None:
        """Tell everybody what is news to a follower."""
        if self._all and (changes := [effect for effect in effects if isinstance(effect, Change)]):
            for watch in self._all:
                watch.put(changes)

    def end(self) -> None:
        """Nothing will happen any more."""
        with self._lock:
            self._has_ended = True
            everybody = self._all
        for watch in everybody:
            watch.end()
