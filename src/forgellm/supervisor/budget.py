"""Who may have how much memory: what a load needs, whether it fits, who makes room, who has outgrown. Pure.

Reads the pool's records and the time, and gives verdicts; must not change, start or end anything. What is reserved is
summed up anew from the records each time, so that no reservation can outlive its process.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from forgellm.config import Settings
from forgellm.states import HAS_PROCESS, WorkerState
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.slots import LoadOrder, Model, Slot
from forgellm.supervisor.status import LoadPlan, Need

_S = WorkerState
TRIM_EVERY_S = 5.0
RUNTIME_BYTES = 200_000_000
"""Python, mlx, transformers and a tokenizer: what a worker held beyond its weights, measured on Linux, 180-240 MB."""

GROWTH = 1.02
"""A worker that was relieved and then holds so many times as much still grows; a token may have been under way."""

PATIENCE_S = 2.0
"""How long a relieved worker has to shrink, and is watched before it gets requests again."""

SUSPECT_SHARE = 0.9
"""A worker that held this share of the budget when a SIGKILL came was probably killed for it."""

_HOLDS = HAS_PROCESS | {_S.BACKOFF}
"""States in which memory is a worker's own: it has it, or comes back to it."""

_CLAIMS = _HOLDS | {_S.WAITING}
"""States in which memory is spoken for."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that could be unloaded to make room."""

    name: str
    priority: int
    idle_s: float
    load_s: float
    size_bytes: int
    is_busy: bool = False


def estimate(order: LoadOrder, kv_plan_tokens: int) -> Need:
    """What one worker of this order will need.

    Weights: the tensor files' sum, or 4 bytes a parameter where they will be f32. KV: the planned tokens, no more than
    the order's own limits allow; f32 doubles them. While loading: a tenth more, or the files beside their f32 copies.
    """
    source, options = order.source, order.options
    f32_bytes = 4 * source.parameters
    is_f32 = options.layout == "f32" or (options.layout == "auto" and f32_bytes <= options.memory_budget_bytes)
    is_converted = is_f32 and f32_bytes > source.weights_bytes
    weights = f32_bytes if is_converted else source.weights_bytes
    caps = [cap for cap in (options.context_length, options.max_kv_size) if cap is not None]
    tokens = min([kv_plan_tokens, *caps])
    return Need(
        weights_bytes=weights,
        kv_bytes=tokens * source.kv_bytes_per_token * (2 if is_converted else 1),
        runtime_bytes=RUNTIME_BYTES if source.engine != "echo" else 0,
        transient_bytes=max(weights // 10, source.weights_bytes if is_converted else 0),
    )


def choose_victims(candidates: Iterable[Candidate], missing_bytes: float) -> tuple[str, ...] | None:
    """The fewest models whose end frees so much, in the order of priority, idleness and cost of loading them again for
    each byte freed, the busy ones last; None if all of them together would not do. Idle times are told apart by whole
    seconds; a busy model's is the time for which it has served."""
    order = sorted(candidates, key=_place)
    chosen: list[Candidate] = []
    for candidate in order:
        if sum(c.size_bytes for c in chosen) >= missing_bytes:
            break
        if candidate.size_bytes:
            chosen.append(candidate)
    if sum(c.size_bytes for c in chosen) < missing_bytes:
        return None
    for candidate in reversed(chosen):  # a large one at the end may have made others before it needless
        if sum(c.size_bytes for c in chosen) - candidate.size_bytes >= missing_bytes:
            chosen.remove(candidate)
    return tuple(c.name for c in chosen)


def _place(c: Candidate) -> tuple[float, ...]:
    return c.is_busy, c.priority, -int(c.idle_s), c.load_s / max(c.size_bytes, 1), -c.idle_s


class Budget:
    """The rules of memory, with the settings and the records that they are applied to."""

    def __init__(self, settings: Settings, budget_bytes: int, models: Mapping[str, Model], life: Lifecycle) -> None:
        """`budget_bytes` 0: no limit. `models` and `life` are the pool's own, read whenever something is asked."""
        self._models = models
        self._life = life
        self.configure(settings, budget_bytes)

    def configure(self, settings: Settings, budget_bytes: int) -> None:
        """Go by these from now on."""
        self._settings = settings
        self._budget: float = budget_bytes or math.inf

    @property
    def limit_bytes(self) -> int | None:
        """What all workers together may hold; None: no limit."""
        return None if math.isinf(self._budget) else int(self._budget)

    def reserved_bytes(self) -> int:
        """All that is spoken for, the spare's footprint included."""
        spare = self._life.spare
        claims = (self.claim_bytes(slot, model.order) for model in self._models.values() for slot in model.slots)
        return sum(claims) + (spare.footprint_bytes if spare else 0)

    # Admission -------------------------------------------------------------------------------------------------------

    def plan(self, order: LoadOrder, now: float) -> LoadPlan:
        """What loading `order` now would need and evict, or why it cannot be."""
        return self._plan(order, now, self._idle())

    def plan_turn(self, order: LoadOrder, now: float, *, with_busy: bool) -> LoadPlan:
        """The same for whom it is the turn of in the line for memory: what others wait for does not count; `with_busy`,
        models in use may be evicted too."""
        return self._plan(order, now, self._unpinned() if with_busy else self._idle(), is_turn=True)

    def _plan(self, order: LoadOrder, now: float, victims: list[Model], *, is_turn: bool = False) -> LoadPlan:
        model = self._models.get(order.source.name)
        is_new = model is None or model.is_unloading or not model.order.same_model(order)
        held = 0 if model is None or is_new else sum(s.state in _HOLDS for s in model.slots[: order.replicas])
        need = self.need_of(order).times(order.replicas - held)
        leaving = self._leaving(order.source.name if is_new else None)
        reserved = self._reserved(order, is_turn=is_turn)
        missing = max(
            reserved - leaving + need.total_bytes - self._budget,
            self._measured() - leaving - self._settings.memory_soft_limit * self._budget,
        )
        plan = LoadPlan(
            model=order.source.name,
            need=need,
            budget_bytes=self.limit_bytes,
            reserved_bytes=reserved,
            must_wait=not self._is_room(need, order),
        )
        return plan if missing <= 0 or order.replicas == held else self._with_victims(plan, missing, victims, now)

    def has_room(self, order: LoadOrder, slot: Slot | None = None) -> bool:
        """Whether one more worker of this order may start at once, in this slot if one is given."""
        return self._is_room(self.need_of(order), order, slot)

    def is_anything_leaving(self) -> bool:
        """Whether memory will come back without anybody asking."""
        return any(
            slot.state in {_S.DRAINING, _S.STOPPING} and not slot.is_recycled for slot in self._life.slots.values()
        )

    def claim_bytes(self, slot: Slot, order: LoadOrder) -> int:
        """What counts for a worker: its estimate, or what the system charges for it if that is more."""
        if slot.state not in _CLAIMS:
            return 0
        return max(self._expected_bytes(slot, order), slot.footprint_bytes)

    def _expected_bytes(self, slot: Slot, order: LoadOrder) -> int:
        """The estimate for a worker, by what it was started for: its model's `order` may have changed since."""
        need = self.need_of(slot.order or order)
        return need.lasting_bytes if slot.state in {_S.READY, _S.DRAINING, _S.STOPPING} else need.total_bytes

    def need_of(self, order: LoadOrder) -> Need:
        """estimate() with the settings' planned tokens."""
        return estimate(order, self._settings.kv_plan_tokens)

    def _is_room(self, need: Need, order: LoadOrder, own: Slot | None = None) -> bool:
        """Whether it fits beside the processes that there are, those still leaving too."""
        claims = [
            self.claim_bytes(slot, model.order)
            for model in self._models.values()
            for slot in model.slots
            if slot.state is not _S.WAITING and slot is not own
        ]
        return sum(claims) + self._spare_bytes(order) + need.total_bytes <= self._budget and not self.is_above_soft()

    def _reserved(self, order: LoadOrder, *, is_turn: bool) -> int:
        """All that is spoken for, but for what an earlier load of the same name still waits for, and whoever else has
        to wait if it `is_turn` of this order."""
        found = self._spare_bytes(order)
        for model in self._models.values():
            is_own = model.name == order.source.name
            counted = [slot for slot in model.slots if not ((is_own or is_turn) and slot.state is _S.WAITING)]
            found += sum(self.claim_bytes(slot, model.order) for slot in counted)
            if model.next_order is not None and not (is_own or is_turn):
                found += self.need_of(model.next_order).times(model.next_order.replicas).total_bytes
        return found

    def _spare_bytes(self, order: LoadOrder) -> int:
        """The spare's footprint, unless this load would take it."""
        spare = self._life.spare
        return spare.footprint_bytes if spare and spare.engine != order.source.engine else 0

    def _leaving(self, replaced: str | None) -> int:
        """What processes hold that are being ended, or that would be: those of the model to be replaced."""
        found = 0
        for model in self._models.values():
            is_going = model.is_unloading or model.name == replaced
            for slot in model.slots:
                if (is_going and slot.state in _CLAIMS) or slot.state in {_S.DRAINING, _S.STOPPING}:
                    found += 0 if slot.is_recycled else self.claim_bytes(slot, model.order)
        return found

    def _unpinned(self) -> list[Model]:
        return [model for model in self._models.values() if not (model.is_unloading or model.pin)]

    def _idle(self) -> list[Model]:
        return [model for model in self._unpinned() if _why_kept(model) == ""]

    def _candidate(self, model: Model, now: float) -> Candidate:
        is_busy = _why_kept(model) != ""
        since = model.last_used if not is_busy else now if model.ready_at is None else model.ready_at
        return Candidate(
            name=model.name,
            priority=model.order.priority,
            idle_s=now - since,
            load_s=model.info.load_s if model.info else 0.0,
            size_bytes=sum(self.claim_bytes(slot, model.order) for slot in model.slots if slot.state is not _S.WAITING),
            is_busy=is_busy,
        )

    def _with_victims(self, plan: LoadPlan, missing: float, victims: list[Model], now: float) -> LoadPlan:
        if plan.need.total_bytes > self._budget:
            reason = f"{_needs(plan)}: more than the whole budget of {size(self._budget)} (memory_budget_bytes)"
            return replace(plan, fits=False, reason=reason)
        chosen = choose_victims([self._candidate(each, now) for each in victims if each.name != plan.model], missing)
        if chosen is None:
            budget = f"{size(plan.reserved_bytes)} of the budget of {size(self._budget)} are taken"
            return replace(plan, fits=False, reason=f"{_needs(plan)}; {budget}: {self._who_has_it()}")
        return replace(plan, would_evict=chosen, must_wait=True)

    def _who_has_it(self) -> str:
        found = []
        for model in self._models.values():
            bytes_ = sum(self.claim_bytes(slot, model.order) for slot in model.slots)
            if bytes_:
                found.append(f"{model.name} {size(bytes_)} ({_why_kept(model) or 'idle'})")
        return ", ".join(found) or "nobody has it; the rest is above the soft limit"

    # Limits ----------------------------------------------------------------------------------------------------------

    def is_above_soft(self) -> bool:
        """Whether the processes hold more than the soft limit."""
        return self._measured() > self._settings.memory_soft_limit * self._budget

    def is_above_hard(self) -> bool:
        """Whether the processes hold more than the hard limit."""
        return self._measured() > self._settings.memory_hard_limit * self._budget

    def is_trim_due(self, slot: Slot, now: float) -> bool:
        """Whether a worker shall drop its caches now."""
        return self.is_above_soft() and slot.state in {_S.READY, _S.DRAINING} and now - slot.trimmed_at >= TRIM_EVERY_S

    def offender(self, now: float) -> tuple[Slot, Literal["relieve", "kill"]] | None:
        """Above the hard limit: the worker that has outgrown its estimate most, and what is to be done. Else None.

        First it is relieved, of its newest request and its caches; if it then still grows, it ends; if it does not
        shrink for a while, it is relieved again. What workers hold that are ending already comes back first."""
        staying = [slot for slot in self._life.slots.values() if not (slot.is_killed or slot.state is _S.STOPPING)]
        if sum(slot.footprint_bytes for slot in staying) <= self._settings.memory_hard_limit * self._budget:
            return None
        slot = max(staying, key=self._outgrown_bytes)
        if self._outgrown_bytes(slot) <= 0:
            return None
        if not slot.pressed_bytes:
            return slot, "relieve"
        if slot.footprint_bytes > slot.pressed_bytes * GROWTH:
            return slot, "kill"
        return (slot, "relieve") if now - slot.pressed_at >= PATIENCE_S else None

    def _outgrown_bytes(self, slot: Slot) -> int:
        return slot.footprint_bytes - self._expected_bytes(slot, self._models[slot.model].order)

    def has_recovered(self, slot: Slot, now: float) -> bool:
        """Whether a relieved worker shall get requests again. Not as soon as all is below the limit: another worker's
        dropped caches can be the reason, and if this one still grows, nothing is gained by ending its next request."""
        return not self.is_above_hard() and now - slot.pressed_at >= PATIENCE_S

    def is_due_for_recycling(self, slot: Slot) -> bool:
        """Whether a ready worker has served, or grown, so much that a fresh one shall take its place."""
        requests, factor = self._settings.recycle_after_requests, self._settings.recycle_growth_factor
        has_served = 0 < requests <= slot.served
        has_grown = factor > 0 and 0 < slot.first_footprint_bytes * factor < slot.footprint_bytes
        return slot.state is _S.READY and (has_served or has_grown)

    def overrun(self, slot: Slot) -> str:
        """Why this worker is an offender, in words."""
        limit = size(self._settings.memory_hard_limit * self._budget)
        held = f"{slot.name} has grown to {size(slot.footprint_bytes)}"
        return f"{held}, and all workers hold {size(self._measured())}, above the memory limit of {limit}"

    def suspicion(self, slot: Slot) -> str:
        """Words to add to those of a SIGKILL that nobody here sent, if the worker held most of the budget; else ""."""
        if slot.footprint_bytes <= SUSPECT_SHARE * self._budget:
            return ""
        return f"; suspected memory: it last held {size(slot.footprint_bytes)} of the budget of {size(self._budget)}"

    def _measured(self) -> int:
        spare = self._life.spare
        return sum(slot.footprint_bytes for slot in self._life.slots.values()) + (spare.footprint_bytes if spare else 0)


def size(size_bytes: float) -> str:
    """Bytes for people."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def _needs(plan: LoadPlan) -> str:
    need = plan.need
    parts = {
        "weights": need.weights_bytes,
        "KV cache": need.kv_bytes,
        "the process": need.runtime_bytes,
        "loading": need.transient_bytes,
    }
    listed = ", ".join(f"{part} {size(part_bytes)}" for part, part_bytes in parts.items())
    return f"{plan.model} needs {size(need.total_bytes)} ({listed})"


def _why_kept(model: Model) -> str:
    """Why a model may not be evicted, in a word; "" if it may."""
    if model.is_unloading:
        return "being unloaded"
    if model.pin:
        return "pinned"
    if model.queue or any(slot.requests for slot in model.slots):
        return "busy"
    if any(slot.state not in {_S.READY, _S.FAILED, _S.BACKOFF, _S.STOPPED} for slot in model.slots):
        return "loading"
    return ""
