"""What a load, an unload or a plan waits on, from any thread, until the supervisor's thread answers it."""

import threading

from forgellm.errors import ForgeLLMError
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.effects import Drained, Loaded, Orders, Unloaded
from forgellm.supervisor.status import LoadPlan

Outcome = Loaded | Unloaded | Drained | Orders | LoadPlan | Counts


class Ticket:
    """What a load or an unload waits on."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._news: Outcome | ForgeLLMError | None = None

    def put(self, news: Outcome | ForgeLLMError) -> None:
        self._news = news
        self._done.set()

    def wait(self, timeout_s: float | None) -> Outcome | None:
        """The outcome, or None if there is none in time. Raises the error if that is the outcome."""
        self._done.wait(timeout_s)
        if isinstance(self._news, ForgeLLMError):
            raise self._news
        return self._news
