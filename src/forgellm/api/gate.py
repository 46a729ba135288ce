"""Bounds how many requests may hold a server thread at once, and tells them when the server stops.

Knows no HTTP: it counts, so that quick routes such as status always find a thread.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from forgellm.errors import ShuttingDown, Unavailable


class Gate:
    """A counter with a limit; open, then draining (those inside finish), then closed (they end now). Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._draining = False
        self._stopping = False
        self._news = threading.Condition()

    @property
    def inside(self) -> int:
        """How many places are taken."""
        return self._inside

    @property
    def is_draining(self) -> bool:
        """Whether nobody is let in any more."""
        return self._draining

    @property
    def is_stopping(self) -> bool:
        """Whether those inside are to end now."""
        return self._stopping

    def enter(self) -> None:
        """Take a place until leave(). Raises Unavailable when all are taken, ShuttingDown after drain() or close()."""
        with self._news:
            if self._draining:
                raise ShuttingDown("the server is shutting down", retry_after_s=5)
            if self._inside >= self._limit:
                raise self.full()
            self._inside += 1

    def is_full(self, waiting: int) -> bool:
        """Whether no place is left for one more, with `waiting` that may want one and came before."""
        return self._inside + waiting >= self._limit and not self._draining

    def full(self) -> Unavailable:
        """What is said to whom there is no place for."""
        return Unavailable(f"{self._limit} requests are being served, the most this server takes (max_streams)")

    def leave(self) -> None:
        with self._news:
            self._inside -= 1
            self._news.notify_all()

    @contextmanager
    def place(self) -> Iterator[None]:
        """enter() and leave() around a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def drain(self) -> None:
        """Let nobody in from now on; those inside may finish."""
        with self._news:
            self._draining = True

    def close(self) -> None:
        """Let nobody in from now on, and ask those inside to end."""
        with self._news:
            self._draining = self._stopping = True
            self._news.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether everybody left within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            return self._news.wait_for(lambda: self._inside == 0, deadline - time.monotonic())
