"""The decision about all models, workers and requests. Pure: an event and the time go in, effects come out.

Nothing else in the program decides anything. Must not read a clock, start a thread, touch a process or a queue, or log.
"""

import signal
from collections.abc import Iterable, Iterator, Mapping

from forgellm.config import Settings
from forgellm.errors import (
    RETRY_AFTER_S,
    ForgeLLMError,
    InsufficientMemory,
    PoolFull,
    QueueFull,
    ShuttingDown,
)
from forgellm.messages import Event, Prefill, Ready, Request, RequestFailed, TrimCache
from forgellm.states import WorkerState
from forgellm.supervisor.budget import Budget
from forgellm.supervisor.clocks import Pulse, WorkerClocks
from forgellm.supervisor.drains import Drains
from forgellm.supervisor.effects import Died, Effect, Orders, Send
from forgellm.supervisor.lifecycle import Lifecycle
from forgellm.supervisor.loads import Loads
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.picture import picture
from forgellm.supervisor.renewal import Renewal
from forgellm.supervisor.requests import Requests
from forgellm.supervisor.restart import Fault, cause_of_exit
from forgellm.supervisor.slots import DeathCause, LoadOrder, Model, Slot
from forgellm.supervisor.status import LoadPlan, PoolStatus

_S = WorkerState
MAX_RETRY_AFTER_S = 60.0
_SHARE = "this API key has {} requests waiting, its share of {}; the rest is kept for other keys, try again later"


class Pool:
    """Every public method but status() takes the time and returns the effects to carry out, in order."""

    def __init__(self, settings: Settings, budget_bytes: int | None = None, log_stem: str = "") -> None:
        """`budget_bytes` None: the setting; 0: no limit. `log_stem` is only shown, in status()."""
        self._settings = settings
        self._log_stem = log_stem
        self._out = Outbox()
        self._life = Lifecycle(settings, self._out)
        self._clocks = WorkerClocks(settings.hang_timeout_s)
        self._models: dict[str, Model] = {}
        limit = settings.memory_budget_bytes if budget_bytes is None else budget_bytes
        self._budget = Budget(settings, limit, self._models, self._life)
        self._life.may_start = self._budget.has_room
        self._requests = Requests(settings, self._out, self._life, self._models)
        self._drains = Drains(self._out, self._requests, self._models)
        self._renewal = Renewal(self._life, self._budget, self._requests)
        self._loads = Loads(
            settings, self._out, self._life, self._budget, self._requests, renewal=self._renewal, models=self._models
        )

    # What users ask for ----------------------------------------------------------------------------------------------

    def submit(self, request: Request, missing: LoadOrder | ForgeLLMError, now: float) -> list[Effect]:
        """Run a request on the least loaded ready worker of its model, or queue it, or refuse it.

        `missing`: how to load the model if it is not, or what to answer then."""
        name = request.model
        refusal = (
            _shutting_down()
            if self._loads.is_stopping
            else self._drains.refusal(name) or self._full(name, request.client)
        )
        if refusal := refusal or self._loads.provide(request, missing, now):
            self._out.deliver(request.request_id, refusal)
        else:
            self._requests.take(request, self._models[request.model], now)
            self._loads.admit(now)
        return self._out.take()

    def abort(self, request_id: str, now: float) -> list[Effect]:
        """End a request early. A queued one ends here, a running one with its worker's last chunk."""
        self._requests.abort(request_id, now)
        self._loads.admit(now)
        return self._out.take()

    def load(self, order: LoadOrder, ticket: str, now: float) -> list[Effect]:
        """Load a model, or join a load of the same one. Other files or options under the same name replace it.

        The ticket gets Loaded, or an error, when every replica is ready or has failed."""
        if self._loads.is_stopping:
            self._out.deliver(ticket, _shutting_down())
            return self._out.take()
        self._loads.load(order, ticket, now)
        self._loads.admit(now)
        return self._out.take()

    def plan(self, order: LoadOrder, now: float) -> LoadPlan:
        """What load() would do with this order now. Changes nothing."""
        return self._budget.plan(order, now)

    def unload(self, name: str | None, ticket: str, now: float, *, force: bool = False) -> list[Effect]:
        """Stop a model's workers (None: the current model's); running requests finish first unless `force`.

        A drain of it is over, too. The ticket gets Unloaded when every process is gone."""
        self._drains.forget(self._loads.current if name is None else name)
        self._loads.unload(name, ticket, now, force=force)
        return self._out.take()

    def drain(self, name: str | None, ticket: str, timeout_s: float, now: float) -> list[Effect]:
        """Have a model (None: the whole pool) take nothing new, and finish what it has within `timeout_s`; the rest is
        aborted. The ticket gets Drained."""
        self._drains.begin(name, ticket, timeout_s, now)
        self._loads.admit(now)
        return self._out.take()

    def resume(self, name: str | None, now: float) -> list[Effect]:
        """Undo drain()."""
        self._drains.resume(name, now)
        return self._out.take()

    def orders(self) -> Orders:
        """What is loaded, as it was asked for."""
        loaded = {name: model for name, model in self._models.items() if not model.is_unloading}
        outdated = tuple(name for name, model in loaded.items() if model.outdated)
        return Orders({name: model.order for name, model in loaded.items()}, outdated)

    def reload(
        self,
        settings: Settings,
        budget_bytes: int,
        orders: Iterable[LoadOrder],
        now: float,
        *,
        stale: Iterable[str] = (),
        removed: Iterable[str] = (),
    ) -> list[Effect]:
        """Go by other settings from now on: `orders` are those of loaded models that they change, `stale` models are
        loaded otherwise the next time, `removed` ones go."""
        self._settings = settings
        self._life.configure(settings)
        self._budget.configure(settings, budget_bytes)
        self._requests.configure(settings)
        self._clocks.hang_timeout_s = settings.hang_timeout_s
        self._loads.configure(settings, stale, removed)
        for order in orders:
            self._loads.reorder(order, now)
        self._loads.admit(now)
        return self._out.take()

    def stop(self, now: float) -> list[Effect]:
        """End everything: requests are aborted, workers stop by the ladder, nothing new is taken."""
        self._loads.is_stopping = True
        for model in list(self._models.values()):
            self._loads.cancel_next(model, _shutting_down())
            self._loads.stop(model, now, "shutting down", force=True)
        self._life.dismiss_spare(now)
        return self._out.take()

    # What the world reports ------------------------------------------------------------------------------------------

    def receive(self, life: int, event: Event, now: float) -> list[Effect]:
        """An event from a worker. One from a life that no slot holds any more is dropped."""
        slot = self._life.slots.get(life)
        spare = self._life.spare
        if slot is None:
            if spare and spare.life == life:
                self._life.spare_event(spare, event, now)
        elif isinstance(event, tuple):
            for chunk in event:
                self._requests.chunk(slot, chunk, now)
        elif isinstance(event, Prefill):
            self._requests.prefill(slot, event)
        elif isinstance(event, RequestFailed):
            self._requests.failed(slot, event, now)
        elif self._life.event(slot, event, now) and isinstance(event, Ready):
            model = self._models[slot.model]
            model.info, model.ready_at = event.info, now if model.ready_at is None else model.ready_at
            self._loads.settle(model, now)
        if slot is not None:
            self._renewal.look(self._models[slot.model], now)
            if not slot.requests:
                self._loads.admit(now)
        return self._out.take()

    def exited(
        self, life: int, exit_code: int, words: str, now: float, *, cause: DeathCause | None = None
    ) -> list[Effect]:
        """A process is gone; `words` say how, for people. What ran on it is run again elsewhere (see replay.py).

        `cause`: what was found to be it, if more than the exit code says."""
        slot = self._life.slots.get(life)
        if slot is not None:
            model, words = self._models[slot.model], slot.death_words or words
            slot.death_cause = slot.death_cause or cause or cause_of_exit(exit_code)
            fault: Fault = "outside" if slot.death_cause == "killed" else "worker"
            if fault == "outside" and exit_code == -signal.SIGKILL and (suspicion := self._budget.suspicion(slot)):
                words, fault = words + suspicion, "worker"
            if slot.state in {_S.STOPPING, _S.DRAINING}:
                model.freed_bytes += slot.footprint_bytes
            else:
                self._out.do(Died(slot.name, life, slot.death_cause, words))
            if self._requests.replay(model, slot, words, now):
                fault = "request"
            self._life.exited(slot, model.order, words, now, fault)
            self._loads.settle(model, now)
            self._loads.admit(now)
        elif self._life.spare_exited(life):
            self._loads.admit(now)
            self._loads.ensure_spare(now)
        return self._out.take()

    def memory(self, footprints: Mapping[int, int], now: float) -> list[Effect]:
        """What the system charges each life for, in bytes. Keeps the limits, and recycles workers."""
        self._life.measured(footprints)
        for slot in list(self._life.slots.values()):
            if self._budget.is_trim_due(slot, now):
                slot.trimmed_at = now
                self._out.do(Send(slot.life, TrimCache()))
            if slot.pressed_bytes and self._budget.has_recovered(slot, now):
                slot.pressed_bytes = 0
                self._requests.dispatch(self._models[slot.model], now)
            self._renewal.look(self._models[slot.model], now)
        match self._budget.offender(now):
            case (slot, "relieve"):
                self._relieve(slot, now)
            case (slot, _):
                self._life.end_for_memory(slot, self._budget.overrun(slot), now)
        self._loads.admit(now)
        return self._out.take()

    def pulse(self, pulses: Mapping[int, Pulse], now: float) -> list[Effect]:
        """The counters of all workers, about once a second. Who hangs, or does not get on, is killed."""
        orders = {name: model.order for name, model in self._models.items()}
        for life, verdict in self._clocks.look(pulses, self._life.stall_limits(orders), now).items():
            self._life.condemn(life, verdict, now)
        self._loads.admit(now)
        return self._out.take()

    # Time ------------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Do what has become due: timeouts, the stop ladder, respawns, queues, idle models, the spare."""
        self._requests.expire(now)
        self._drains.tick(now)
        for model in list(self._models.values()):  # after the ends of requests: the last one may have ended now
            if now >= model.idle_deadline:
                if model.is_retired:
                    self._drains.forget(model.name)
                    self._loads.stop(model, now, "it is no longer in the settings", force=False)
                else:
                    self._loads.evict(model, "idle", f"idle for {model.ttl_s:g} s", now)
        self._life.tick_spares(now)
        self._loads.admit(now)
        for model in list(self._models.values()):  # after all that gives workers deadlines: a limit may be 0 s
            for slot in list(model.slots):
                if slot.deadline is not None and now >= slot.deadline:
                    if model.is_put_away and slot.state is _S.DRAINING:
                        self._requests.move_away(slot)
                    self._life.overdue(slot, model.order, now)
        self._loads.admit(now)
        self._loads.ensure_spare(now)
        return self._out.take()

    def deadline(self) -> float:
        """When tick() is next worth calling; infinite if not before the next event."""
        return min(self._deadlines())

    def _deadlines(self) -> Iterator[float]:
        yield self._life.spare_deadline()
        yield self._requests.next_deadline()
        yield self._drains.deadline()
        yield self._loads.turn_at
        for model in self._models.values():
            yield from (slot.deadline for slot in model.slots if slot.deadline is not None)
            yield model.idle_deadline

    # The picture -----------------------------------------------------------------------------------------------------

    def status(self) -> PoolStatus:
        """An immutable picture of everything."""
        return picture(
            self._loads.current,
            self._models.values(),
            self._life.spare,
            self._budget,
            is_stopping=self._loads.is_stopping,
            is_drained=self._drains.is_pool_drained,
            drained=self._drains.marked,
            log_stem=self._log_stem,
            put_away=self._loads.put_away(),
        )

    @property
    def is_memory_tight(self) -> bool:
        """Whether the workers hold so much that they should be measured more often."""
        return self._budget.is_above_soft()

    @property
    def is_stopped(self) -> bool:
        """Whether stop() was called and no process is left."""
        return self._loads.is_stopping and not self._life.has_processes

    # Requests --------------------------------------------------------------------------------------------------------

    def _full(self, name: str, client: str) -> ForgeLLMError | None:
        """Why one request more of this client cannot wait, or None.

        A client that has a name may have no more waiting than places are free: alone it gets half a queue, beside one
        other a third, and a newcomer finds room (the dynamic threshold of Choudhury and Hahne, IEEE/ACM Transactions on
        Networking 6(2), 1998, with factor 1). Who has none, because there are no keys, gets the whole queue."""
        model = self._models.get(name)
        if model:
            retry_after_s = min(max(RETRY_AFTER_S, model.pace_s), MAX_RETRY_AFTER_S)
            if len(model.queue) >= self._settings.max_queue:
                full = f"{len(model.queue)} requests wait for {model.name} already; try again later"
                return QueueFull(full, retry_after_s=retry_after_s)
            own = model.queue.waiting(client) if client else 0
            if own >= self._settings.max_queue - len(model.queue):
                return QueueFull(_SHARE.format(own, f"the queue for {model.name}"), retry_after_s=retry_after_s)
        waiting = sum(len(each.queue) for each in self._models.values())
        if waiting >= self._settings.max_queue_total:
            return PoolFull(f"{waiting} requests wait for all models together; try again later", retry_after_s=5.0)
        own = sum(each.queue.waiting(client) for each in self._models.values()) if client else 0
        if own >= self._settings.max_queue_total - waiting:
            return QueueFull(_SHARE.format(own, "the queues of all models"), retry_after_s=5.0)
        return None

    # Memory ----------------------------------------------------------------------------------------------------------

    def _relieve(self, slot: Slot, now: float) -> None:
        """Above the hard limit: end a worker's newest request, have it drop its caches; with none left, end it."""
        running = [asked for asked in self._requests.asked.values() if asked.life == slot.life and not asked.is_over]
        if slot.pressed_bytes and not running:
            self._life.end_for_memory(slot, self._budget.overrun(slot), now)
            return
        slot.pressed_bytes, slot.pressed_at = slot.footprint_bytes, now
        for asked in running[-1:]:
            ended = f"{self._budget.overrun(slot)}; this was its newest request"
            self._requests.end(asked, InsufficientMemory(ended), now)
        self._out.do(Send(slot.life, TrimCache()))


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the supervisor is shutting down")
