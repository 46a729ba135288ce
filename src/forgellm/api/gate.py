"""Bounds how many requests may hold a server thread at once, and tells them when the server stops.

Knows no HTTP: it counts, so that quick routes such as status always find a thread.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from forgellm.errors import ShuttingDown, Unavailable


class Gate:
    """A counter with a limit and a stop flag. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._stopping = False
        self._news = threading.Condition()

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def enter(self) -> None:
        """Take a place until leave(). Raises Unavailable when all are taken, ShuttingDown once close() was called."""
        with self._news:
            if self._stopping:
                raise ShuttingDown("the server is shutting down", retry_after_s=5)
            if self._inside >= self._limit:
                message = f"{self._limit} requests are being served, the most this server takes (max_streams)"
                raise Unavailable(message, retry_after_s=1)
            self._inside += 1

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

    def close(self) -> None:
        """Let nobody in from now on, and ask those inside to end."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Whether everybody left within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            return self._news.wait_for(lambda: self._inside == 0, deadline - time.monotonic())
