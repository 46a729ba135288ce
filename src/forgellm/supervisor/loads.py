"""Brings models up and down: who is loaded, replaced, evicted, waited for, and who is told. A part of the pure pool.

Knows orders, tickets and memory; must not look into requests beyond their queues, nor decide how a worker lives.
"""

import math
from collections.abc import Iterable
from typing import Literal

from forgellm.config import Settings
from forgellm.errors import (
    RETRY_AFTER_S,
    ForgeLLMError,
    GpuOutOfMemory,
    InsufficientMemory,
    ModelChanged,
    ModelFailed,
    ModelUnloading,
)
from forgellm.messages import Request
from forgellm.states import IS_LOADING, WorkerState
from forgellm.supervisor.budget import Budget
from forgellm.supervisor.effects import Evicted, Kept, Loaded, Unloaded
from forgellm.supervisor.fairness import line, turn_at
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.renewal import Renewal
from forgellm.supervisor.requests import Requests
from forgellm.supervisor.slots import LoadOrder, Model, Slot
from forgellm.supervisor.status import LoadPlan

_S = WorkerState


class Loads:
    """All models by name, and every move between being loaded and not."""

    def __init__(
        self,
        settings: Settings,
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
        self.turn_at = math.inf  # when the first of the line for memory gets its turn, whoever is in use
        self._gone_orders: dict[str, LoadOrder] = {}  # of models that were put away, to be loaded again as they were
        self._settings = settings
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
            self._out.deliver(ticket, InsufficientMemory(plan.reason))
            return
        name = self.current = order.source.name
        self._gone_orders.pop(name, None)
        self._make_room(plan, now)
        model = self._models.get(name)
        if model is None:
            self._begin(Model(order, ordered_at=now, last_used=now, load_tickets=[ticket]), now)
            return
        model.keep_alive_s = None
        if model.is_unloading or not model.order.same_model(order):
            if model.next_order is not None and not model.next_order.same_model(order):
                self._out.fail_all(model.next_tickets, ModelUnloading(f"a later load of {name} replaced this one"))
            model.next_order = order
            model.next_tickets.append(ticket)
            if not (model.is_put_away and model.order.same_model(order)):
                self.stop(model, now, "replaced by another load", force=False)
        elif (
            not model.is_retired
            and len(model.slots) == order.replicas
            and all(slot.state is _S.READY for slot in model.slots)
        ):
            model.order = order
            self._out.deliver(ticket, _loaded(order, None, already=True))
        else:
            model.load_tickets.append(ticket)
            model.is_retired = False
            self._fill(model, order, now)

    def provide(self, request: Request, missing: LoadOrder | ForgeLLMError, now: float) -> ForgeLLMError | None:
        """See to it that a request can be queued: its model serves, is on its way, or is wanted from now on.

        Returns why it cannot. `missing`: how to load it if nobody did, or why it shall not be."""
        name, may_load = request.model, request.load_policy != "preloaded"
        model = self._models.get(name)
        if model is None:
            kept = self._gone_orders.get(name)
            order = kept if kept is not None and kept.on_demand and may_load else missing
            if isinstance(order, ForgeLLMError):
                return order
            if refusal := self._never(order, now):
                return refusal
            self._begin(Model(order, ordered_at=now, last_used=now), now, is_wanted=True)
        elif model.is_retired or (model.is_unloading and not (model.is_put_away and may_load)):
            return ModelUnloading(f"{model.name} is being unloaded; load it again")
        elif not (model.will_serve() or model.is_put_away):
            return self._try_again(model, now, may_load=may_load)
        return None

    def _try_again(self, model: Model, now: float, *, may_load: bool) -> ForgeLLMError | None:
        """A failed model gets one more try when it is wanted a while later, if it used to serve or may be loaded so."""
        slot = model.failed()[0]
        rest_s = slot.since + self._settings.backoff_max_s - now
        if rest_s > 0 or not (slot.was_ready or (model.order.on_demand and may_load)):
            return _failure(model, max(RETRY_AFTER_S, rest_s))
        if refusal := self._never(model.order, now):
            return refusal
        for slot in model.failed():
            self._life.wait(slot, now)
        return None

    def _never(self, order: LoadOrder, now: float) -> ForgeLLMError | None:
        plan = self._budget.plan_turn(order, now, with_busy=True)
        return None if plan.fits else InsufficientMemory(plan.reason)

    def configure(self, settings: Settings, stale: Iterable[str], removed: Iterable[str]) -> None:
        """Go by these from now on. `stale` models are loaded anew as the settings have them, `removed` ones go."""
        self._settings = settings
        for name in stale:
            self._gone_orders.pop(name, None)
        for model in [self._models[name] for name in removed if name in self._models]:
            model.is_retired = True

    def reorder(self, order: LoadOrder, now: float) -> None:
        """The settings of a loaded model have changed: policy counts at once, options by replacing its workers, other
        files by replacing the model."""
        model = self._models.get(order.source.name)
        if model is None or model.is_unloading:
            return
        if model.order.source != order.source:
            plan = self._budget.plan(order, now)
            if not plan.fits:
                model.outdated = plan.reason
                self._out.do(Kept(model.name, plan.reason))
                return
            current = self.current
            self.load(order, "", now)  # nobody waits: the outcome shows in the status
            self.current = current
            return
        for slot in model.slots:
            slot.is_kept = False
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

    def _begin(self, model: Model, now: float, *, is_wanted: bool = False) -> None:
        """A model that was not there: loaded, or only `is_wanted` by requests, which wait in the line for memory."""
        self._models[model.name] = model
        self._fill(model, model.order, now, is_wanted=is_wanted)

    def _fill(self, model: Model, order: LoadOrder, now: float, *, is_wanted: bool = False) -> None:
        """Bring the model to what the order asks: as many slots, each of them started."""
        model.order, model.outdated = order, ""
        model.grow(order.replicas, now)
        staying = model.staying()
        for slot in staying[: order.replicas]:
            if slot.state in {_S.STOPPED, _S.BACKOFF, _S.FAILED}:
                self._life.forget(slot)
                if is_wanted:
                    self._life.wait(slot, now)
                else:
                    self._life.start_or_wait(slot, order, now, "load")
        for slot in staying[order.replicas :]:
            self._life.drain(slot, now, "one replica less", force=False)
            self._requests.move_away(slot)
        self.settle(model, now)

    def stop(self, model: Model, now: float, reason: str, *, force: bool) -> None:
        """Unload a model for good: what waits for it is refused."""
        model.is_unloading, model.is_put_away = True, False
        self._gone_orders.pop(model.name, None)
        leaving = ModelUnloading(f"{model.name} is being unloaded: {reason}")
        self._out.fail_all(model.load_tickets, leaving)
        self._requests.refuse_queue(model, leaving)
        for slot in model.slots:
            self._life.drain(slot, now, reason, force=force)
        self.settle(model, now)

    def evict(self, model: Model, cause: Literal["memory", "idle"], reason: str, now: float) -> None:
        """Unload a model that nobody asked to be unloaded. It comes back when it is wanted: what is queued, or not
        finished in time, waits for that. With the files of its settings then, if they had to be kept out until now."""
        self._out.do(Evicted(model.name, cause, reason))
        model.is_unloading = model.is_put_away = True
        if not model.outdated:
            self._gone_orders[model.name] = model.order
        leaving = ModelUnloading(f"{model.name} is being unloaded: {reason}")
        self._out.fail_all(model.load_tickets, leaving)
        for slot in model.slots:
            self._life.drain(slot, now, reason, force=False)
        self.settle(model, now)

    def put_away(self) -> dict[str, str | None]:
        """Which models come back as they were when they are wanted, and their system prompts."""
        return {name: order.system_prompt for name, order in self._gone_orders.items() if order.on_demand}

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
        if not (model.will_serve() or model.is_unloading):
            self._requests.refuse_queue(model, _failure(model, RETRY_AFTER_S))
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
            following = Model(model.next_order, ordered_at=now, last_used=now, load_tickets=model.next_tickets)
            following.queue = model.queue
            self._begin(following, now)
        elif model.queue:
            following = Model(model.order, ordered_at=now, last_used=now)
            following.queue, following.keep_alive_s = model.queue, model.keep_alive_s
            self._begin(following, now, is_wanted=True)
        elif self.current == model.name and not (model.is_put_away and model.order.on_demand):
            self.current = None

    def cancel_next(self, model: Model, error: ForgeLLMError) -> None:
        model.next_order = None
        self._out.fail_all(model.next_tickets, error)

    # The line for memory ---------------------------------------------------------------------------------------------

    def admit(self, now: float) -> None:
        """Start what waits for memory, first come first served, and make room for the first; see fairness.py."""
        self.turn_at = math.inf
        for model in line(self._models.values()):
            for slot in model.waiting():
                if self._budget.has_room(model.order, slot):
                    self._life.start(slot, model.order, now, "respawn" if slot.was_ready else "load")
            if not (waiting := model.waiting()):
                continue
            if not model.is_wanted:
                if len(waiting) == len(model.slots) and not any(slot.was_ready for slot in waiting):
                    self.stop(model, now, "nobody waits for it any more", force=False)
            elif self._budget.is_anything_leaving() or self._has_turn_coming(model, waiting, now):
                return

    def _has_turn_coming(self, model: Model, waiting: list[Slot], now: float) -> bool:
        """Make room for the first of the line, or find out when. False if that cannot be: a load is refused then, and a
        worker that died waits on, with its requests' own deadlines."""
        plan = self._budget.plan_turn(model.order, now, with_busy=False)
        if not plan.fits:
            plan = self._budget.plan_turn(model.order, now, with_busy=True)
            self.turn_at = self._turn_at(model, plan)
            if plan.fits and now < self.turn_at:
                return True
        if plan.would_evict:
            self._make_room(plan, now)
            self.admit(now)
        elif not plan.fits:
            refusal = InsufficientMemory(plan.reason)
            self._out.fail_all(model.load_tickets, refusal)
            for slot in waiting:
                if not slot.was_ready:
                    self._life.refuse(slot, refusal, now)
            self.settle(model, now)
        return bool(plan.would_evict)

    def _turn_at(self, model: Model, plan: LoadPlan) -> float:
        in_its_way = [self._models[name] for name in plan.would_evict]
        return turn_at(model, in_its_way, self._settings.max_hold_off_s) if in_its_way else math.inf

    def _make_room(self, plan: LoadPlan, now: float) -> None:
        for name in plan.would_evict:
            self.evict(self._models[name], "memory", f"{plan.model} needs its memory", now)

    def ensure_spare(self, now: float) -> None:
        if not (self.is_stopping or self._budget.is_above_soft()):
            self._life.ensure_spare(now)


def _loaded(order: LoadOrder, loading_time_s: float | None, *, already: bool) -> Loaded:
    adapter = order.source.adapter_path
    return Loaded(model=order.source.name, adapter_path=adapter, loading_time_s=loading_time_s, already_loaded=already)


def _failure(model: Model, retry_after_s: float) -> ForgeLLMError:
    """What a request for a failed model is told: why its load failed, or that it crashed too often, or why at once."""
    slot = model.failed()[0]
    if slot.failure is not None and (not slot.was_ready or isinstance(slot.failure, GpuOutOfMemory | ModelChanged)):
        return slot.failure
    return ModelFailed(f"{model.name} has failed: {slot.reason}", retry_after_s=retry_after_s)
