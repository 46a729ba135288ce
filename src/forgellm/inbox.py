"""What other threads put, taken by one thread that has other things to do at certain times. Must not be read by two."""

import queue
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Inbox(Generic[_T]):
    """A queue.SimpleQueue, whose put() is safe even in a finalizer, read by one thread.

    The get(timeout) of CPython 3.11 and 3.12 waits for ever if its time is over between its first look and its wait:
    with a timeout of microseconds in most calls, with one of milliseconds if the system takes the processor away just
    then. After a look that found nothing, it waits at once, and in time.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_T] = queue.SimpleQueue()

    def put(self, item: _T) -> None:
        """From any thread. Never waits."""
        self._queue.put(item)

    def take(self, timeout_s: float = 0.0) -> _T:
        """The next item, waiting up to `timeout_s` for it. Raises queue.Empty if there is none then."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            if timeout_s <= 0:
                raise
        return self._queue.get(timeout=timeout_s)
