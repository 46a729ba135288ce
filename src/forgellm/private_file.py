"""Files that one user's processes share: changed by one of them at a time, replaced as a whole. Knows no content."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forgellm.errors import Unavailable

LOCK_TIMEOUT_S = 10.0
_POLL_S = 0.02


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """One writer of `path` at a time; its folder is made if need be. The lock file stays: its inode is the lock.

    `what` names the file in the Unavailable that a file raises that cannot be written, or stays locked."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for(descriptor, path)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"cannot write {what} {path}: {error.strerror or error}") from error


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


def _wait_for(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Unavailable(f"another process holds the lock of {path}; try again when it is done") from None
        time.sleep(_POLL_S)
