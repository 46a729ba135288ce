"""One process at a time in a piece of the cache folder: a lock file held with flock. Must not be used for anything long
without a deadline."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forgellm.errors import Unavailable

_POLL_S = 0.05
_WORD_S = 1.0


@contextmanager
def exclusive(path: Path, timeout_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` (made if missing, never removed: its inode is the lock) for the block.

    `waiting` is called about once a second while another process holds it: waiting for that one is no hang.

    The system frees it when the process dies, whatever the cause. Raises Unavailable after `timeout_s` seconds, and
    for an OSError in the block: a cache folder that cannot be written, or a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(descriptor, path, timeout_s, waiting)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(
            f"cannot write into the cache folder {path.parent}: {error.strerror or error}; make room there, or set "
            "cache_dir to another folder",
            retry_after_s=30.0,
        ) from error


def _wait_for(descriptor: int, path: Path, timeout_s: float, waiting: Callable[[], None]) -> None:
    next_word = time.monotonic()
    deadline = next_word + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            if now >= next_word:
                next_word = now + _WORD_S
                waiting()
            if now >= deadline:
                raise Unavailable(
                    f"another process has held {path} for more than {timeout_s:.0f} s; try again when it is done",
                    retry_after_s=10.0,
                ) from None
        time.sleep(_POLL_S)
