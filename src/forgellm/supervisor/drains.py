"""Draining on request: a model, or the whole pool, takes nothing new while what it has finishes; and the report. Pure.

Must not touch workers: they stay as they are, and idle in the end.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forgellm.errors import Draining, ModelNotLoaded
from forgellm.supervisor.effects import Drained
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.requests import Requests
from forgellm.supervisor.slots import Model

GRACE_S = 5.0
"""How long workers have to let go of what was aborted; a worker that hangs takes longer, and is reported as `left`."""

RETRY_AFTER_S = 5.0


@dataclass(slots=True)
class _Drain:
    """One drain that somebody waits for. `waiting`: what it found, by id."""

    ticket: str
    model: str | None
    began_at: float
    deadline: float
    waiting: frozenset[str]
    moves: int  # of the models in its scope, when it began
    aborted: int | None = None  # None before its deadline


class Drains:
    """All drains, and who takes no requests because of them: a model until resume() or forget(), loaded or not."""

    def __init__(self, out: Outbox, requests: Requests, models: Mapping[str, Model]) -> None:
        self.is_pool_drained = False
        self.marked: set[str] = set()  # models, by name; one that is evicted comes back as it was
        self._out = out
        self._requests = requests
        self._models = models
        self._drains: list[_Drain] = []

    def begin(self, name: str | None, ticket: str, timeout_s: float, now: float) -> None:
        """Drain a model (None: all of them, and those loaded later); the ticket gets Drained at the end."""
        if name is not None and name not in self._models:
            self._out.deliver(ticket, ModelNotLoaded(f"the model {name} is not loaded", field="model"))
            return
        self.is_pool_drained |= name is None
        if name is not None:
            self.marked.add(name)
        found = frozenset(
            request_id
            for request_id, asked in self._requests.asked.items()
            if name in {None, asked.request.model} and not asked.is_over
        )
        self._drains.append(_Drain(ticket, name, now, now + timeout_s, found, self._moves(name)))
        self.tick(now)

    def resume(self, name: str | None, now: float) -> None:
        """Take requests again: one model, or (None) all. A drain that is under way is reported as far as it came."""
        if name is None:
            self.is_pool_drained = False
        self.marked -= self.marked if name is None else {name}
        for drain in [drain for drain in self._drains if name in {None, drain.model}]:
            self._report(drain, now)

    def forget(self, name: str | None) -> None:
        """A model was unloaded for good: if it is ever loaded again, it takes requests."""
        self.marked.discard(name or "")

    def refusal(self, name: str) -> Draining | None:
        """Why a request for this model is not taken, or None."""
        if self.is_pool_drained or name in self.marked:
            what = "the server" if self.is_pool_drained else name
            return Draining(f"{what} is being drained and takes no new requests", retry_after_s=RETRY_AFTER_S)
        return None

    def tick(self, now: float) -> None:
        """Report the drains that are done; at a deadline, abort what is left."""
        for drain in list(self._drains):
            if not self._left(drain):
                self._report(drain, now)
            elif now >= drain.deadline and drain.aborted is None:
                drain.aborted, drain.deadline = self._left(drain), now + GRACE_S
                for request_id in sorted(drain.waiting & self._requests.asked.keys()):
                    self._requests.abort(request_id, now)
                if not self._left(drain):
                    self._report(drain, now)
            elif now >= drain.deadline:
                self._report(drain, now)

    def deadline(self) -> float:
        """When tick() is next worth calling: at once for one that is done; infinite if never."""
        return min((drain.deadline if self._left(drain) else -math.inf for drain in self._drains), default=math.inf)

    def _left(self, drain: _Drain) -> int:
        asked = self._requests.asked
        return sum(request_id in asked and not asked[request_id].is_over for request_id in drain.waiting)

    def _moves(self, name: str | None) -> int:
        return sum(model.moves for model in self._models.values() if name in {None, model.name})

    def _report(self, drain: _Drain, now: float) -> None:
        self._drains.remove(drain)
        left = self._left(drain)
        aborted = (drain.aborted or 0) - (left if drain.aborted else 0)
        news = Drained(
            model=drain.model,
            finished=len(drain.waiting) - aborted - left,
            moved=max(0, self._moves(drain.model) - drain.moves),
            aborted=aborted,
            left=left,
            took_s=now - drain.began_at,
        )
        self._out.deliver(drain.ticket, news)
