"""Planned replacement of a worker that has served or grown enough, or whose options have changed since. Pure.

One worker of a model at a time. Its clients do not notice: must not end a request, it has them moved.
"""

from forgellm.states import WorkerState
from forgellm.supervisor.budget import Budget
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.requests import Requests
from forgellm.supervisor.slots import Model, Slot

_S = WorkerState


class Renewal:
    """Who is replaced next, and how: by a successor that is loaded beside it and then takes its requests over, or in
    the same place, while other replicas (or, if there is no room for a successor, the queue) hold its requests."""

    def __init__(self, life: Lifecycle, budget: Budget, requests: Requests) -> None:
        self._life = life
        self._budget = budget
        self._requests = requests

    def look(self, model: Model, now: float) -> None:
        """Begin the replacement of one worker, if one is due and no other is coming or going."""
        settled = {_S.READY, _S.FAILED}
        if model.is_unloading or any(slot.replaces or slot.state not in settled for slot in model.slots):
            return
        for slot in model.slots:
            if slot.is_open and not slot.is_kept and self._begin(model, slot, now):
                return

    def settle(self, model: Model, now: float) -> None:
        """After moves: a successor that is ready takes over; if it failed, the old worker stays."""
        for slot in model.slots if not model.is_unloading else ():
            old = slot.replaces
            if old is not None and slot.state is _S.READY:
                slot.replaces = None
                self._life.drain(old, now, f"replaced by {slot.name}", force=False)
                self._requests.move_away(old)
            elif old is not None and slot.state in {_S.FAILED, _S.STOPPED}:
                slot.replaces, old.is_kept = None, True
                old.reason = f"it was to be replaced, but its successor failed: {slot.reason}"
                self._life.drain(slot, now, slot.reason, force=False)  # whoever follows its moves sees that it is gone
                model.slots = [other for other in model.slots if other is not slot]

    def _begin(self, model: Model, slot: Slot, now: float) -> bool:
        is_outdated = slot.is_outdated(model.order)
        if not is_outdated and not self._budget.is_due_for_recycling(slot):
            return False
        reason = "its options changed" if is_outdated else "recycled, as planned"
        is_busy = bool(slot.requests or model.queue)
        has_others = any(other.is_open for other in model.slots if other is not slot)
        if (is_busy or is_outdated) and self._budget.has_room(model.order):
            model.grow(len(model.staying()) + 1, now)
            model.slots[-1].replaces = slot
            self._life.start(model.slots[-1], model.order, now, f"replaces {slot.name}: {reason}")
        elif is_outdated or has_others or not is_busy:
            self._life.recycle(slot, now, reason)
            self._requests.move_away(slot)
        else:
            return False
        return True
