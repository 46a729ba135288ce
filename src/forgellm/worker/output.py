"""Where a worker's output goes: its log, or nowhere if the disk takes no more. Must not raise for what is printed."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


def into(log_path: str) -> None:
    """Append standard output and error of this process to that file from now on, as Python and libraries write them."""
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:  # a log is not worth a worker
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = _stream(1), _stream(2)


class _Droppable(io.RawIOBase):
    """A descriptor; what it does not take is lost, where Python's own stream would raise in whoever prints."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer") -> int:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            return os.write(self._descriptor, view)
        return view.nbytes


def _stream(descriptor: int) -> TextIO:
    raw = io.BufferedWriter(_Droppable(descriptor))
    return io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", line_buffering=True)
