"""How long a request may wait, for a place, for its first token, for the next one, and in all. Pure: time is passed in.

Must not end a request: the pool does, with the error that is made here. Next to no cost for requests without limits,
nor for each token: a limit that a token pushed back is found pushed back when its old instant comes.
"""

import heapq
import math
from collections.abc import Iterator, Mapping

from forgellm.config import ModelConfig, Settings
from forgellm.errors import ForgeLLMError, QueueTimeout, RequestTimeout
from forgellm.messages import Timeouts
from forgellm.supervisor.slots import Asked, Limits


def of(config: Settings | ModelConfig) -> Timeouts:
    """What the settings, or those of one model, say of each limit."""
    return Timeouts(
        queue_s=config.queue_timeout_s,
        first_token_s=config.first_token_timeout_s,
        token_s=config.token_timeout_s,
        total_s=config.request_timeout_s,
    )


def limits(*sources: Timeouts) -> Limits:
    """For each limit the first source that has one; 0 there, or none at all: no limit."""
    return Limits(
        queue_s=_first([source.queue_s for source in sources]),
        first_token_s=_first([source.first_token_s for source in sources]),
        token_s=_first([source.token_s for source in sources]),
        total_s=_first([source.total_s for source in sources]),
    )


class Deadlines:
    """When to look at which request. `asked` are all that have not ended, kept by the pool."""

    def __init__(self, asked: Mapping[str, Asked]) -> None:
        self._asked = asked
        self._heap: list[tuple[float, str]] = []

    def watch(self, asked: Asked) -> None:
        """After anything that can bring its next deadline forward: it came, was sent to a worker, got a token."""
        when, _, _ = _due(asked)
        if when < asked.wake_at:
            asked.wake_at = when
            heapq.heappush(self._heap, (when, asked.request.request_id))

    def next(self) -> float:
        """The instant before which nothing can be late; infinite if nothing ever can."""
        while self._heap and not self._is_current(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def late(self, now: float) -> Iterator[tuple[Asked, ForgeLLMError]]:
        """Each request that must end now, and the error that it ends with."""
        while self.next() <= now:
            _, request_id = heapq.heappop(self._heap)
            asked = self._asked[request_id]
            asked.wake_at = math.inf
            when, limit_s, missed = _due(asked)
            if when <= now:
                yield asked, _error(asked, limit_s, missed)
            else:
                self.watch(asked)

    def _is_current(self, when: float, request_id: str) -> bool:
        return request_id in self._asked and self._asked[request_id].wake_at == when


def _due(asked: Asked) -> tuple[float, float, str]:
    """(when the request is late, by which limit in seconds, for what). A worker that is at it has the clocks of tokens
    running; a wait for the next worker, after a death, is a wait in the queue."""
    own = asked.limits
    if asked.is_over:
        return math.inf, math.inf, ""
    if not asked.life:
        waits, limit_s, missed = asked.queued_at, own.queue_s, "queue"
    elif asked.tokens:
        waits, limit_s, missed = asked.moved_at, own.token_s, "token"
    else:
        waits, limit_s, missed = asked.moved_at, own.first_token_s, "first_token"
    if asked.asked_at + own.total_s <= waits + limit_s:
        waits, limit_s, missed = asked.asked_at, own.total_s, "request"
    return waits + limit_s, limit_s, missed


def _error(asked: Asked, limit_s: float, missed: str) -> ForgeLLMError:
    if missed == "queue":
        waited = f"waited {limit_s:g} s in the queue of {asked.request.model} (queue_timeout_s); try again later"
        return QueueTimeout(waited)
    words = {
        "first_token": f"no first token within {limit_s:g} s (first_token_timeout_s)",
        "token": f"no further token within {limit_s:g} s (token_timeout_s)",
        "request": f"not finished within {limit_s:g} s (request_timeout_s, or the request's own timeout_s)",
    }
    return RequestTimeout(words[missed])


def _first(values: list[float | None]) -> float:
    return next((value for value in values if value is not None), 0.0) or math.inf
