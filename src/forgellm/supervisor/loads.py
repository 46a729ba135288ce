"""Brings models up and down: who is loaded, replaced, evicted, waited for, and who is told. A part of the pure pool.

Knows orders, tickets and memory; must not look into requests beyond their queues, nor decide how a worker lives.
"""

from typing import Literal

from forgellm.errors import ForgeLLMError, InsufficientMemory, ModelFailed, ModelUnloading
from forgellm.states import IS_LOADING, WorkerState
from forgellm.supervisor.budget import Budget
from forgellm.supervisor.effects import Evicted, Loaded, Unloaded
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.renewal import Renewal
from forgellm.supervisor.requests import Requests
from forgellm.supervisor.slots import LoadOrder, Model
from forgellm.supervisor.status import LoadPlan

_S = WorkerState
RETRY_AFTER_S = 1.0


class Loads:
    """All models by name, and every move between being loaded and not."""

    def __init__(
        self,
        out: Outbox,
        life: Lifecycle,
        budget: Budget,
        requests: Requests,
        *,
        renewal: Renewal,
        models: dict[str, Model],
    ) -> None:
        self.current: str | None = None
        self.is_stopping = False
        self._out = out
        self._life = life
        self._budget = budget
        self._requests = requests
        self._renewal = renewal
        self._models = models

    def load(self, order: LoadOrder, ticket: str, now: float) -> None:
        """Load a model, or join a load of the same one; see Pool.load."""
        plan = self._budget.plan(order, now)
        if not plan.fits:
            self._out.deliver(ticket, InsufficientMemory(plan.reason, retry_after_s=RETRY_AFTER_S))
            return
        name = self.current = order.source.name
        self._make_room(plan, now)
        model = self._models.get(name)
        if model is None:
            self._begin(order, [ticket], now)
        elif model.is_unloading or not model.order.same_model(order):
            if model.next_order is not None and not model.next_order.same_model(order):
                self._out.fail_all(model.next_tickets, ModelUnloading(f"a later load of {name} replaced this one"))
            model.next_order = order
            model.next_tickets.append(ticket)
            self.stop(model, now, "replaced by another load", force=False)
        elif len(model.slots) == order.replicas and all(slot.state is _S.READY for slot in model.slots):
            model.order = order
            self._out.deliver(ticket, _loaded(order, None, already=True))
        else:
            model.load_tickets.append(ticket)
            self._fill(model, order, now)

    def unload(self, name: str | None, ticket: str, now: float, *, force: bool) -> None:
        """Stop a model's workers; see Pool.unload."""
        name = self.current if name is None else name
        model = self._models.get(name) if name else None
        if model is None:
            self._out.deliver(ticket, Unloaded(model=name, was_loaded=False, freed_bytes=0, forced=False))
        else:
            self.cancel_next(model, ModelUnloading(f"{name} was unloaded before it was loaded"))
            model.unload_tickets.append(ticket)
            self.stop(model, now, "unloaded", force=force)
            self.admit(now)

    def _begin(self, order: LoadOrder, tickets: list[str], now: float) -> None:
        model = self._models[order.source.name] = Model(order, ordered_at=now, last_used=now, load_tickets=tickets)
        self._fill(model, order, now)

    def _fill(self, model: Model, order: LoadOrder, now: float) -> None:
        """Bring the model to what the order asks: as many slots, each of them started."""
        model.order = order
        model.grow(order.replicas, now)
        staying = model.staying()
        for slot in staying[: order.replicas]:
            if slot.state is _S.BACKOFF or (slot.state in {_S.STOPPED, _S.FAILED} and self._budget.has_room(order)):
                self._life.restart(slot, order, now, "load")
            elif slot.state in {_S.STOPPED, _S.FAILED}:
                self._life.wait(slot, now)
        for slot in staying[order.replicas :]:
            self._life.drain(slot, now, "one replica less", force=False)
            self._requests.move_away(slot)
        self.settle(model, now)

    def stop(self, model: Model, now: float, reason: str, *, force: bool) -> None:
        model.is_unloading = True
        leaving = ModelUnloading(f"{model.name} is being unloaded: {reason}", retry_after_s=RETRY_AFTER_S)
        self._out.fail_all(model.load_tickets, leaving)
        self._requests.refuse_queue(model, leaving)
        for slot in model.slots:
            self._life.drain(slot, now, reason, force=force)
        self.settle(model, now)

    def settle(self, model: Model, now: float) -> None:
        """After moves: answer those who wait for a load or an unload, hand out or refuse the queue."""
        self._renewal.settle(model, now)
        model.slots = [slot for slot in model.slots if slot.state is not _S.STOPPED or model.is_unloading]
        if all(slot.state is _S.STOPPED for slot in model.slots):
            self._gone(model, now)
            return
        wanted = model.staying()
        if not any(slot.state in IS_LOADING or slot.is_recycled for slot in wanted):
            failures = [slot.failure for slot in wanted if slot.failure is not None]
            for ticket in model.load_tickets:
                loaded = _loaded(model.order, now - model.ordered_at, already=False)
                self._out.deliver(ticket, failures[0] if failures else loaded)
            model.load_tickets.clear()
        if not model.will_serve():
            failed = ModelFailed(f"{model.name} has failed: {model.slots[0].reason}", retry_after_s=RETRY_AFTER_S)
            self._requests.refuse_queue(model, failed)
        self._requests.dispatch(model, now)
        self._renewal.look(model, now)
        self.ensure_spare(now)

    def _gone(self, model: Model, now: float) -> None:
        """Every process of the model is gone: say so, and load what was ordered meanwhile."""
        forced = any(slot.is_killed for slot in model.slots)
        done = Unloaded(model=model.name, was_loaded=True, freed_bytes=model.freed_bytes, forced=forced)
        for ticket in model.unload_tickets:
            self._out.deliver(ticket, done)
        del self._models[model.name]
        if model.next_order is not None:
            self._begin(model.next_order, model.next_tickets, now)
        elif self.current == model.name:
            self.current = None

    def cancel_next(self, model: Model, error: ForgeLLMError) -> None:
        model.next_order = None
        self._out.fail_all(model.next_tickets, error)

    # Memory ----------------------------------------------------------------------------------------------------------

    def evict(self, model: Model, cause: Literal["memory", "idle"], reason: str, now: float) -> None:
        """Unload a model that nobody asked to be unloaded."""
        self._out.do(Evicted(model.name, cause, reason))
        self.stop(model, now, reason, force=False)

    def _make_room(self, plan: LoadPlan, now: float) -> None:
        for name in plan.would_evict:
            self.evict(self._models[name], "memory", f"idle, and {plan.model} needs its memory", now)

    def admit(self, now: float) -> None:
        """Start what waits for memory, in order. Who still finds too little when all has come back is planned anew."""
        for model in list(self._models.values()):
            for slot in model.slots:
                if slot.state is _S.WAITING and self._budget.has_room(model.order):
                    self._life.restart(slot, model.order, now, "load")
            waiting = [slot for slot in model.slots if slot.state is _S.WAITING]
            if waiting and self._budget.is_anything_leaving():
                return
            if waiting:
                plan = self._budget.plan(model.order, now)
                self._make_room(plan, now)
                for slot in waiting if not plan.fits else ():
                    self._life.refuse(slot, InsufficientMemory(plan.reason), now)
                self.settle(model, now)

    def ensure_spare(self, now: float) -> None:
        if not (self.is_stopping or self._budget.is_above_soft()):
            self._life.ensure_spare(now)


def _loaded(order: LoadOrder, loading_time_s: float | None, *, already: bool) -> Loaded:
    adapter = order.source.adapter_path
    return Loaded(model=order.source.name, adapter_path=adapter, loading_time_s=loading_time_s, already_loaded=already)
