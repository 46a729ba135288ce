"""Who waits for news of a request, a load or an unload, and gets it, on whichever thread they wait.

Must not decide what the news is, nor keep alive who no longer wants it: a Generation is known by a weak reference.
"""

import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from forgellm.errors import ShuttingDown
from forgellm.messages import Prefill
from forgellm.supervisor.generation import Generation
from forgellm.supervisor.tickets import Ticket


class Deliveries:
    """Those who wait, by the id of their request or ticket. They come on any thread; news comes on the supervisor's."""

    def __init__(self) -> None:
        self._readers: dict[str, Callable[[], Generation | Ticket | None]] = {}

    @contextmanager
    def ticket(self) -> Iterator[tuple[str, Ticket]]:
        """A new ticket and its id, known while the `with` block lasts."""
        ticket_id, ticket = uuid.uuid4().hex, Ticket()
        self._readers[ticket_id] = lambda: ticket
        try:
            yield ticket_id, ticket
        finally:
            self._readers.pop(ticket_id, None)

    def expect(self, request_id: str, generation: Generation) -> bool:
        """News of this request goes to this Generation, up to its end; false if it goes to another already."""
        reader = weakref.ref(generation)
        return self._readers.setdefault(request_id, reader) is reader

    def deliver(self, to: str, news: Any) -> None:
        """Hand over a piece of news; nobody may be there for it any more."""
        reader = self._readers.get(to, lambda: None)()
        is_end = not isinstance(news, tuple | Prefill) or (isinstance(news, tuple) and news[4] is not None)
        if is_end:
            self._readers.pop(to, None)
        if isinstance(reader, Ticket):
            reader.put(news)
        elif isinstance(reader, Generation):
            if isinstance(news, tuple):
                reader.put(news)
            elif isinstance(news, Prefill):
                reader.prefill = (news.done, news.total)
            else:
                reader.fail(news)

    def fail_all(self) -> None:
        """Nobody will answer any more: say so to all who wait."""
        for to in list(self._readers):
            self.deliver(to, ShuttingDown("the supervisor is not running"))
