"""What a load, an unload or a plan waits on, from any thread, until the supervisor's thread answers it."""

import threading
import uuid
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

from forgellm.errors import ForgeLLMError
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.effects import Drained, Loaded, Orders, Unloaded
from forgellm.supervisor.status import LoadPlan


class Ticket:
    """What a load or an unload waits on."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._news: Loaded | Unloaded | Drained | Orders | LoadPlan | Counts | ForgeLLMError | None = None

    def put(self, news: Loaded | Unloaded | Drained | Orders | LoadPlan | Counts | ForgeLLMError) -> None:
        self._news = news
        self._done.set()

    def wait(self, timeout_s: float | None) -> Loaded | Unloaded | Drained | Orders | LoadPlan | Counts | None:
        """The outcome, or None if there is none in time. Raises the error if that is the outcome."""
        self._done.wait(timeout_s)
        if isinstance(self._news, ForgeLLMError):
            raise self._news
        return self._news


class TicketScope:
    """A ticket that is known under its id while somebody waits for it."""

    def __init__(self, readers: MutableMapping[str, Any]) -> None:
        self._readers = readers
        self._id = uuid.uuid4().hex
        self._ticket = Ticket()

    def __enter__(self) -> tuple[str, Ticket]:
        self._readers[self._id] = lambda: self._ticket
        return self._id, self._ticket

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._readers.pop(self._id, None)
