"""How one worker slot lives: start, load, die, back off, give up, drain, stop. A part of the pure pool.

Knows slots and the spare worker; knows no queues of requests and no tickets: the pool settles those after each move.
"""

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace

from forgellm.config import Settings
from forgellm.errors import ForgeLLMError, GpuOutOfMemory, InsufficientMemory, WorkerDied, from_wire
from forgellm.messages import (
    Abort,
    EngineName,
    Event,
    Hello,
    Imported,
    Load,
    LoadFailed,
    Loading,
    Memory,
    Ready,
    Unload,
)
from forgellm.states import HAS_PROCESS, WorkerState, check_move
from forgellm.supervisor.clocks import DUMP_S, WAKE_S
from forgellm.supervisor.effects import Announce, Progressed, Send, Signal, Spawn
from forgellm.supervisor.outbox import Outbox
from forgellm.supervisor.restart import Fault, RestartPolicy, shrunk
from forgellm.supervisor.slots import LoadOrder, Slot, Spare

_S = WorkerState
SPARE_TRIES = 3
QUICK: frozenset[EngineName] = frozenset({"embed"})
"""Engines that import in a tenth of a second: the spare is kept for those that take their time."""


class Lifecycle:
    """All slots that have a process, the spare, and every move between states."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self.slots: dict[int, Slot] = {}  # by life, while a process exists
        self.spare: Spare | None = None
        self._doomed: dict[int, tuple[float, signal.Signals]] = {}  # who must go: when to send what next
        self._spare_failures = 0
        self._engine = _likely_engine(settings)
        self._lives = 0
        self._out = out
        self.may_start: Callable[[LoadOrder, Slot], bool] = lambda order, slot: True  # there is room: the pool's word
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Go by these from now on; deadlines that run already stay."""
        self._settings = settings
        self._restart = RestartPolicy(
            initial_s=settings.backoff_initial_s,
            max_s=settings.backoff_max_s,
            budget=settings.crash_budget,
            window_s=settings.crash_window_s,
        )

    # Starting --------------------------------------------------------------------------------------------------------

    def start(self, slot: Slot, order: LoadOrder, now: float, reason: str) -> None:
        """Fill a slot with a process: the spare if it fits, else a new one. Its Load waits in its queue."""
        engine = order.source.engine
        self._engine = self._engine if engine in QUICK else engine
        slot.begin_life()
        options = shrunk(order.options) if slot.is_shrunk else order.options
        slot.order, slot.max_batch = order, options.max_batch
        if self.spare and self.spare.engine == engine:
            spare, self.spare = self.spare, None
            slot.life, slot.pid, slot.is_imported = spare.life, spare.pid, spare.is_imported
        else:
            slot.life = self._spawn(engine)
        self.slots[slot.life] = slot
        timeout_s = self._settings.import_timeout_s if slot.pid else self._settings.hello_timeout_s
        self._move(slot, _S.STARTING, now, reason, now + timeout_s)
        if slot.is_imported:
            self._move(slot, _S.LOADING, now, reason, now + self._settings.load_timeout_s)
        # A respawn has clients waiting, and mlx has compiled this model's kernels in the life before.
        self._out.do(Send(slot.life, Load(order.source, replace(options, warm_up=not slot.was_ready))))

    def forget(self, slot: Slot) -> None:
        """Before a start at a user's word: whatever went wrong before does not count."""
        slot.was_ready = slot.spawn_retried = slot.is_shrunk = False
        slot.deaths.clear()
        slot.crashes.clear()
        self._spare_failures = 0

    def start_or_wait(self, slot: Slot, order: LoadOrder, now: float, reason: str) -> None:
        """Start if there is room; else hold the start back until other processes have given memory back."""
        if self.may_start(order, slot):
            self.start(slot, order, now, reason)
        else:
            self.wait(slot, now)

    def wait(self, slot: Slot, now: float) -> None:
        """Hold a start back, in the line for memory."""
        slot.is_recycled = False
        self._move(slot, _S.WAITING, now, "waits for memory")

    def refuse(self, slot: Slot, failure: ForgeLLMError, now: float) -> None:
        """Give up a start that was held back: the memory did not come."""
        self._give_up(slot, failure, now)

    def recycle(self, slot: Slot, now: float, reason: str) -> None:
        """Have a worker replaced by a fresh one in the same place, once it has let go of its requests."""
        slot.is_recycled = True
        if slot.requests:
            self._move(slot, _S.DRAINING, now, reason, now + self._settings.drain_timeout_s)
        else:
            self.stop(slot, now, reason)

    def event(self, slot: Slot, event: Event, now: float) -> bool:
        """Take in what a worker says of itself. Returns whether the slot became ready."""
        if slot.is_killed:
            return False  # said before the SIGKILL reached it: it will not keep its word
        match event:
            case Hello(pid):
                slot.pid = pid
                if slot.state is _S.STARTING:
                    slot.deadline = now + self._settings.import_timeout_s
            case Imported() if slot.state is _S.STARTING:
                slot.is_imported = True
                self._move(slot, _S.LOADING, now, slot.reason, now + self._settings.load_timeout_s)
            case Loading(progress, stage):
                slot.progress, slot.stage = progress, stage
                self._out.do(Progressed(slot.name, slot.life, progress, stage))
            case Ready() if slot.state is _S.LOADING:
                slot.mlx_active_bytes, slot.mlx_cache_bytes = event.mlx_active_bytes, event.mlx_cache_bytes
                slot.progress, slot.stage, slot.was_ready, slot.failure = 1.0, "", True, None
                self._move(slot, _S.READY, now, slot.reason)
                return True
            case LoadFailed(code, message):
                slot.failure, slot.death_cause = from_wire(code, message), "load_error"
                slot.deadline = now + self._settings.term_timeout_s  # it exits by itself; if not, it is killed
            case Memory(active, cache):
                slot.mlx_active_bytes, slot.mlx_cache_bytes = active, cache
            case _:
                pass  # Ready or Imported from a worker that is being stopped; Bye, whose exit follows
        return False

    # Dying -----------------------------------------------------------------------------------------------------------

    def exited(self, slot: Slot, order: LoadOrder, words: str, now: float, fault: Fault) -> None:
        """The slot's process is gone: stopped as asked, or to be tried again, or given up.

        A request's `fault` takes back the death before this one, too: it was the same request's."""
        is_explained = fault == "request"
        del self.slots[slot.life]
        self._doomed.pop(slot.life, None)
        slot.end_life()
        if slot.state is _S.DRAINING:
            self._move(slot, _S.STOPPING, now, slot.reason)
        if slot.state is _S.STOPPING:
            self._move(slot, _S.STOPPED, now, slot.reason)
            if slot.is_recycled:
                self.start_or_wait(slot, order, now, slot.reason)
        elif slot.failure is not None and not (slot.was_ready and isinstance(slot.failure, WorkerDied)):
            self._give_up(slot, slot.failure, now)
        elif slot.death_cause == "gpu_oom" and not (slot.was_ready and (is_explained or _can_shrink(slot, order))):
            if slot.state is _S.READY:
                self._move(slot, _S.BACKOFF, now, words)
            self._give_up(slot, GpuOutOfMemory(words), now)
        elif slot.was_ready and is_explained:
            slot.restarts += 1
            slot.deaths, slot.crashes = slot.deaths[:-1], slot.crashes[:-1]
            self._move(slot, _S.BACKOFF, now, words)
            self.start_or_wait(slot, order, now, words)
        elif slot.was_ready:
            self._died(slot, order, words, now, fault)
        elif slot.state is _S.STARTING and not slot.is_imported and not slot.spawn_retried:
            slot.spawn_retried = True  # once, silently: something outside killed it before it could say a word
            self._move(slot, _S.BACKOFF, now, words)
            self.start_or_wait(slot, order, now, "died at its start; tried once more")
        else:
            doing = "loading" if slot.state is _S.LOADING else "starting"
            self._give_up(slot, WorkerDied(f"{words}, while {doing}"), now)

    def _died(self, slot: Slot, order: LoadOrder, words: str, now: float, fault: Fault) -> None:
        if slot.death_cause == "gpu_oom":
            slot.is_shrunk = True  # as large as before, it would only run out again
            words += "; it goes on with half the batch and no prefix cache"
        slot.restarts += 1
        slot.deaths = [*self._restart.recent(slot.deaths, now), now]
        if fault == "worker":
            slot.crashes = [*self._restart.recent(slot.crashes, now), now]
            if len(slot.crashes) >= self._restart.budget:
                deaths = f"{len(slot.crashes)} deaths in {self._settings.crash_window_s:g} s; the last: {words}"
                self._move(slot, _S.BACKOFF, now, words)
                self._give_up(slot, WorkerDied(deaths), now)
                return
        delay_s = self._restart.delay_s(slot.deaths)
        self._move(slot, _S.BACKOFF, now, words, now + delay_s)
        if delay_s == 0:
            self.start_or_wait(slot, order, now, words)

    def _give_up(self, slot: Slot, failure: ForgeLLMError, now: float) -> None:
        slot.failure = failure
        self._move(slot, _S.FAILED, now, failure.message)

    # Stopping --------------------------------------------------------------------------------------------------------

    def drain(self, slot: Slot, now: float, reason: str, *, force: bool) -> None:
        """Let what runs finish, or end it now if `force`; then climb the stop ladder."""
        slot.is_recycled = False
        if slot.state in {_S.READY, _S.DRAINING} and slot.requests:
            if force:
                self._abort_all(slot)
            timeout_s = self._settings.unload_timeout_s if force else self._settings.drain_timeout_s
            if slot.state is _S.READY:
                self._move(slot, _S.DRAINING, now, reason, now + timeout_s)
            elif force:
                slot.deadline = now + timeout_s
        elif slot.state in HAS_PROCESS and slot.state is not _S.STOPPING:
            self.stop(slot, now, reason)
        elif slot.state in {_S.WAITING, _S.BACKOFF, _S.FAILED}:
            self._move(slot, _S.STOPPED, now, reason)

    def stop(self, slot: Slot, now: float, reason: str) -> None:
        """The ladder's first rung: ask. A worker that still loads cannot hear, and holds nothing worth asking for."""
        can_hear = slot.state in {_S.READY, _S.DRAINING}
        timeout_s = self._settings.unload_timeout_s if can_hear else self._settings.term_timeout_s
        self._move(slot, _S.STOPPING, now, reason, now + timeout_s)
        slot.is_termed = not can_hear
        self._out.do(Send(slot.life, Unload()) if can_hear else Signal(slot.life, signal.SIGTERM))

    def overdue(self, slot: Slot, order: LoadOrder, now: float) -> None:
        """The slot's deadline has come: the next rung, the next try, or the end of one that never answered."""
        match slot.state:
            case _S.BACKOFF:
                self.start_or_wait(slot, order, now, slot.reason)
            case _S.DRAINING:
                self._abort_all(slot)
                self.stop(slot, now, slot.reason)
            case _S.STOPPING if not slot.is_termed:
                slot.is_termed = True
                slot.deadline = now + self._settings.term_timeout_s
                self._out.do(Signal(slot.life, signal.SIGTERM))
            case _:
                slot.death_cause = slot.death_cause or "timeout"
                if slot.failure is None and (slot.pid is not None or slot.spawn_retried):
                    doing = "loading" if slot.state is _S.LOADING else "starting"
                    slot.failure = WorkerDied(f"the worker took too long at {doing} and was killed")
                self.kill(slot, now)

    def kill(self, slot: Slot, now: float) -> None:
        """SIGKILL, and again after a while should it be needed (a process in uninterruptible sleep)."""
        slot.is_killed = True
        slot.deadline = now + self._settings.term_timeout_s
        self._out.do(Signal(slot.life, signal.SIGKILL))

    def end_for_memory(self, slot: Slot, why: str, now: float) -> None:
        """SIGKILL for a worker above the hard limit. One that still loads would only do so again: it has failed."""
        slot.death_words, slot.death_cause = f"the worker was killed: {why}", "memory"
        if slot.state in {_S.STARTING, _S.LOADING}:
            slot.failure = InsufficientMemory(slot.death_words)
        self.kill(slot, now)

    def measured(self, footprints: Mapping[int, int]) -> None:
        """What the system charges each life for, in bytes."""
        for life, footprint in footprints.items():
            if self.spare and self.spare.life == life:
                self.spare.footprint_bytes = footprint
            elif life in self.slots:
                slot = self.slots[life]
                slot.footprint_bytes = footprint
                if slot.state is _S.READY and not slot.first_footprint_bytes:
                    slot.first_footprint_bytes = footprint

    def stall_limits(self, orders: Mapping[str, LoadOrder]) -> dict[int, float]:
        """{life: seconds without a step after which it is stuck} of all that have said hello and are not condemned."""
        limits = {
            life: self._stall_limit_s(slot, orders[slot.model])
            for life, slot in self.slots.items()
            if slot.pid is not None and not slot.is_killed
        }
        if self.spare and self.spare.pid is not None:
            limits[self.spare.life] = math.inf
        return limits

    def _stall_limit_s(self, slot: Slot, order: LoadOrder) -> float:
        if slot.state is _S.LOADING:
            return self._settings.load_stall_timeout_s or math.inf
        if slot.requests and slot.state is not _S.STOPPING:
            own = order.progress_timeout_s
            return (self._settings.progress_timeout_s if own is None else own) or math.inf
        return math.inf

    def condemn(self, life: int, verdict: str, now: float) -> None:
        """A worker that hangs: wake it, have it write its stacks to its log, then kill it."""
        if life in self.slots:
            slot = self.slots[life]
            slot.death_words, slot.death_cause, slot.is_killed = verdict, "hang", True
        elif self.spare and self.spare.life == life:
            self.spare = None
            self._spare_failures += 1
        self._doomed[life] = (now + WAKE_S, signal.SIGUSR1)
        self._out.do(Signal(life, signal.SIGCONT))

    def _abort_all(self, slot: Slot) -> None:
        for request_id in sorted(slot.requests):
            self._out.do(Send(slot.life, Abort(request_id)))

    # The spare -------------------------------------------------------------------------------------------------------

    def ensure_spare(self, now: float) -> None:
        """Keep one worker imported and waiting, except while another one starts: that one needs the machine more."""
        is_busy = any(slot.state in {_S.STARTING, _S.LOADING} for slot in self.slots.values())
        if self._settings.spare and not (self.spare or is_busy or self._spare_failures >= SPARE_TRIES):
            self.spare = Spare(self._spawn(self._engine), self._engine, deadline=now + self._settings.hello_timeout_s)

    def spare_event(self, spare: Spare, event: Event, now: float) -> None:
        match event:
            case Hello(pid):
                spare.pid = pid
                spare.deadline = now + self._settings.import_timeout_s
            case Imported():
                spare.is_imported = True
                spare.deadline = math.inf
                self._spare_failures = 0
            case _:
                pass  # an import error; its exit follows

    def spare_exited(self, life: int) -> bool:
        """Whether that life was the spare, or a dismissed one."""
        if self._doomed.pop(life, None) is not None:
            return True
        if self.spare is None or self.spare.life != life:
            return False
        self.spare = None
        self._spare_failures += 1
        return True

    def dismiss_spare(self, now: float) -> None:
        if self.spare:
            self._doomed[self.spare.life] = (now + self._settings.term_timeout_s, signal.SIGKILL)
            self._out.do(Signal(self.spare.life, signal.SIGTERM))
            self.spare = None

    def tick_spares(self, now: float) -> None:
        """SIGKILL for a spare that never said hello, or does not go; for whoever hangs, its stacks first."""
        for life, (at, number) in self._doomed.items():
            if now >= at:
                wait_s = DUMP_S if number is signal.SIGUSR1 else self._settings.term_timeout_s
                self._doomed[life] = (now + wait_s, signal.SIGKILL)
                self._out.do(Signal(life, number))
        if self.spare and now >= self.spare.deadline:
            self._doomed[self.spare.life] = (now + self._settings.term_timeout_s, signal.SIGKILL)
            self._out.do(Signal(self.spare.life, signal.SIGKILL))
            self.spare = None  # no load may adopt it now
            self._spare_failures += 1

    def spare_deadline(self) -> float:
        """When tick_spares() is next worth calling; infinite if never."""
        dooms = [at for at, _ in self._doomed.values()]
        return min([*dooms, self.spare.deadline if self.spare else math.inf])

    @property
    def has_processes(self) -> bool:
        return bool(self.slots or self.spare or self._doomed)

    # Small parts -----------------------------------------------------------------------------------------------------

    def _spawn(self, engine: EngineName) -> int:
        self._lives += 1
        self._out.do(Spawn(self._lives, engine))
        return self._lives

    def _move(self, slot: Slot, new: WorkerState, now: float, reason: str, deadline: float | None = None) -> None:
        old, slot.state = slot.state, check_move(slot.state, new)
        slot.since, slot.reason, slot.deadline = now, reason, deadline
        self._out.do(Announce(slot.name, slot.life, old, new, reason))


def _can_shrink(slot: Slot, order: LoadOrder) -> bool:
    return not slot.is_shrunk and shrunk(order.options) != order.options


def _likely_engine(settings: Settings) -> EngineName:
    """The first spare is spawned before the first load: prepare what the configured models will ask for."""
    sources = [model.source for model in settings.models.values()]
    return "echo" if sources and all(source == "echo" for source in sources) else "mlx"
