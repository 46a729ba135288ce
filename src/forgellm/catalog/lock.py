"""One process at a time in a piece of the cache folder. Must not be used for anything long without a deadline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forgellm.errors import Unavailable
from forgellm.private_file import locked_by


@contextmanager
def exclusive(path: Path, timeout_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` for the block; see locked_by(). `waiting`: to wait for another process is no hang.

    Raises Unavailable after `timeout_s` seconds, and for an OSError in the block: a cache folder that cannot be
    written, or a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked_by(path, timeout_s, waiting):
            yield
    except OSError as error:
        raise Unavailable(
            f"cannot write into the cache folder {path.parent}: {error.strerror or error}; make room there, or set "
            "cache_dir to another folder",
            retry_after_s=30.0,
        ) from error
