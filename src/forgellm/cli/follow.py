"""Follows worker logs and events for people to read. Reads files and status; changes nothing."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from forgellm.errors import ModelNotLoaded, Unavailable

POLL_S = 0.3

Status = dict[str, Any]
Line = tuple[str, int, str]
"""(worker, life, text)."""


def log_lines(status_of: Callable[[], Status], model: str, last: int, *, follow: bool) -> Iterator[Line]:
    """The last lines of the log of each worker of a model; with `follow` all that come after, of later lives too.

    Raises ModelNotLoaded if there is none, and Unavailable if the daemon's files are not on this machine."""
    status = status_of()
    tails = {life: _Tail(worker, life, path) for worker, life, path in _files(status, model)}
    if not tails:
        raise ModelNotLoaded(f"the model {model} is not loaded; `forgellm ps` lists those that are")
    if not any(os.access(tail.path, os.R_OK) for tail in tails.values()):
        raise Unavailable(
            f"there is no file {status['log_stem']}…: the daemon runs on another machine, or as another user"
        )
    for tail in tails.values():
        yield from tail.last(last)
    while follow:
        for worker, life, path in _files(status_of(), model):
            tails.setdefault(life, _Tail(worker, life, path))
        found = [line for tail in list(tails.values()) for line in tail.more()]
        yield from found
        if not found:
            time.sleep(POLL_S)


def event_text(name: str, value: dict[str, Any]) -> str:
    """One event of /api/events as a line."""
    if name == "snapshot":
        models = ", ".join(f"{model['model_name']} is {model['state']}" for model in value["models"])
        return f"now: {models or 'no model is loaded'}"
    if name == "end":
        return f"end: {value['reason']}"
    when = time.strftime("%H:%M:%S", time.localtime(value["time"]))
    match name:
        case "state":
            what = f"{value['worker']} (life {value['life']}): {value['from']} -> {value['to']} ({value['reason']})"
        case "progress":
            what = f"{value['worker']}: {value['progress']:.0%} {value['stage']}"
        case "death":
            what = f"{value['worker']} (life {value['life']}) died: {value['cause']}: {value['reason']}"
        case _:
            what = f"{value['model']} is evicted: {value['reason']}"
    return f"{when} {what}"


def _files(status: Status, model: str) -> list[tuple[str, int, Path]]:
    """(worker, life, log file) of each worker of a model that has, or had, a process."""
    return [
        (worker["name"], worker["life"], Path(f"{status['log_stem']}{worker['life']}.log"))
        for each in status["models"]
        if each["model_name"] == model
        for worker in each["workers"]
        if worker["life"]
    ]


class _Tail:
    """One log file, and how far it was read. A file that the daemon cut back is read from its new start."""

    def __init__(self, worker: str, life: int, path: Path) -> None:
        self.path = path
        self._name = worker, life
        self._offset = 0
        self._half = b""

    def last(self, count: int) -> list[Line]:
        """Its last lines; more() goes on after them."""
        return list(deque(self.more(), maxlen=count))

    def more(self) -> list[Line]:
        """The whole lines that were added since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset, self._half = 0, b""
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return []  # its process is only just starting, or the daemon has thrown the file of an old life away
        self._offset += len(added)
        *lines, self._half = (self._half + added).split(b"\n")
        return [(*self._name, line.decode("utf-8", "replace")) for line in lines]
