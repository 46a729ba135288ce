"""Files that one user's processes share: changed by one of them at a time, replaced as a whole. Knows no content."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forgellm.errors import Unavailable

LOCK_TIMEOUT_S = 10.0
_POLL_S = 0.02
_WORD_S = 1.0


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """One writer of `path` at a time; its folder is made if need be.

    `what` names the file in the Unavailable that a file raises that cannot be written, or stays locked."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked_by(path.with_name(f"{path.name}.lock"), LOCK_TIMEOUT_S):
            yield
    except OSError as error:
        raise Unavailable(f"cannot write {what} {path}: {error.strerror or error}") from error


@contextmanager
def locked_by(lock: Path, timeout_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file (made if missing, never removed: its inode is the lock) for the block. The system frees it when
    the process dies, whatever the cause. `waiting` is called about once a second while another process holds it.

    Raises Unavailable after `timeout_s` seconds, and OSError."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _wait_for(descriptor, lock, timeout_s, waiting)
        yield
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all, power cuts included. Raises OSError. Hold its lock."""
    target = path.resolve()  # a link stays one
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        draft.unlink()  # of a process with this number that died while it wrote
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name must outlive a power cut too: what was revoked would come back
    finally:
        os.close(folder)


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
