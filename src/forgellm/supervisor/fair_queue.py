"""One model's queue, fair between clients: they take turns, and each one's requests go in the order they came.

Round robin over those who have something waiting, as in Nagle's fair queueing (RFC 970) with requests for packets: a
client with a thousand requests makes another wait for one of them, not for all. Knows ids only, and who they are from.
"""

from collections import OrderedDict
from collections.abc import Iterator


class FairQueue:
    """Ids of requests; every operation takes constant time but for the listings."""

    def __init__(self) -> None:
        self._again: OrderedDict[str, None] = OrderedDict()
        self._turns: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()  # client -> ids; first has the next turn
        self._client_of: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._again) + len(self._client_of)

    def __iter__(self) -> Iterator[str]:
        """All that wait now: those that run again, then the others client by client."""
        return iter([*self._again, *(request_id for own in self._turns.values() for request_id in own)])

    def append(self, request_id: str, client: str) -> None:
        """A new request: last of its client's; a client that had none waiting gets its turn after all others."""
        self._turns.setdefault(client, OrderedDict())[request_id] = None
        self._client_of[request_id] = client

    def append_again(self, request_id: str) -> None:
        """A request that had its turn and lost its worker goes before all others, and before those put here earlier."""
        self._again[request_id] = None
        self._again.move_to_end(request_id, last=False)

    def remove(self, request_id: str) -> None:
        """It left without having had a turn, or, of those that run again, in whatever way."""
        if request_id in self._again:
            del self._again[request_id]
            return
        client = self._client_of.pop(request_id)
        del self._turns[client][request_id]
        if not self._turns[client]:
            del self._turns[client]

    def again(self) -> list[str]:
        """Those that run again, first in line first."""
        return list(self._again)

    def take_turn(self) -> str:
        """Remove and return the first request of the client whose turn it is. Raises StopIteration if none waits."""
        client, own = next(iter(self._turns.items()))
        request_id = next(iter(own))
        self.remove(request_id)
        if own:
            self._turns.move_to_end(client)
        return request_id

    def waiting(self, client: str) -> int:
        """How many of this client's requests wait for their turn."""
        return len(self._turns.get(client, ()))

    @property
    def has_turns(self) -> bool:
        """Whether any request waits that has not had its turn."""
        return bool(self._turns)

    def clear(self) -> list[str]:
        """Remove and return all that wait."""
        waiting = list(self)
        self._again.clear()
        self._turns.clear()
        self._client_of.clear()
        return waiting
