"""The pool's own records: models, their worker slots, the requests. Plain mutable data, private to the pool."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from forgellm.errors import ForgeLLMError
from forgellm.messages import EngineName, EngineOptions, ModelInfo, ModelSource, Request, Timeouts
from forgellm.states import WILL_SERVE, WorkerState
from forgellm.supervisor.fair_queue import FairQueue

DeathCause = Literal["hang", "memory", "gpu_oom", "timeout", "load_error", "oom", "killed", "signal", "exit"]
"""Why a process ended though nobody wanted it to, in one word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """What a load asks for; equal orders ask for the same thing. Policy (ttl_s, pin, …) may change while loaded."""

    source: ModelSource
    options: EngineOptions
    replicas: int = 1
    ttl_s: float | None = None
    pin: bool = False
    priority: int = 0
    system_prompt: str | None = None
    progress_timeout_s: float | None = None  # None: the setting
    timeouts: Timeouts = field(default_factory=Timeouts)
    on_demand: bool = True  # whether a request may have it loaded
    aliases: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict, compare=False)  # what the load call said besides the name

    def same_model(self, other: "LoadOrder") -> bool:
        """Whether workers loaded for one order can serve the other."""
        return (self.source, self.options) == (other.source, other.options)


@dataclass(slots=True)
class Slot:
    """One replica's place: it outlives the processes (lives) that fill it. `life` is the last one."""

    model: str
    replica: int
    since: float
    state: WorkerState = WorkerState.STOPPED
    reason: str = ""
    life: int = 0
    order: LoadOrder | None = None  # what this life was started for; the model's may have changed since
    max_batch: int = 0  # requests that it may run at once
    is_shrunk: bool = False  # the GPU's memory ran out: half of them, and no prefix cache, until it is loaded anew
    replaces: "Slot | None" = None  # which goes when this one is ready
    is_kept: bool = False  # its successor failed: not tried again in this life
    pid: int | None = None
    is_imported: bool = False
    progress: float = 0.0
    stage: str = ""
    restarts: int = 0
    was_ready: bool = False
    spawn_retried: bool = False
    deadline: float | None = None  # of the current state
    is_termed: bool = False  # SIGTERM was sent, SIGKILL is next
    is_killed: bool = False
    failure: ForgeLLMError | None = None
    deaths: list[float] = field(default_factory=list)  # when, lately; those from outside too
    crashes: list[float] = field(default_factory=list)  # the deaths among them that use up the crash budget
    requests: set[str] = field(default_factory=set)
    mlx_active_bytes: int = 0
    mlx_cache_bytes: int = 0
    footprint_bytes: int = 0
    first_footprint_bytes: int = 0  # of this life, once it was ready
    served: int = 0  # requests that ended in this life
    trimmed_at: float = -math.inf  # when it was last told to drop its caches
    pressed_bytes: int = 0  # its footprint when it was relieved above the hard limit; takes no requests meanwhile
    pressed_at: float = 0.0
    is_recycled: bool = False  # being stopped only to be started again
    death_words: str = ""  # why the supervisor kills it; instead of what its exit code says
    death_cause: DeathCause | None = None  # the same in one word

    @property
    def name(self) -> str:
        return f"{self.model}#{self.replica}"

    @property
    def is_open(self) -> bool:
        """Whether it may be given requests."""
        return self.state is WorkerState.READY and not self.is_killed and not self.pressed_bytes

    def is_outdated(self, order: LoadOrder) -> bool:
        """Whether it was started for other options than those of this order."""
        return self.order is not None and self.order is not order and not self.order.same_model(order)

    def begin_life(self) -> None:
        """Forget what belonged to the process before."""
        self.pid, self.is_imported, self.is_termed, self.is_killed = None, False, False, False
        self.progress, self.stage, self.failure = 0.0, "starting", None
        self.first_footprint_bytes = self.served = self.pressed_bytes = 0
        self.is_recycled, self.is_kept = False, False
        self.death_words, self.death_cause = "", None

    def end_life(self) -> None:
        """Its process is gone, and with it all memory; how it failed, and whether it was killed, is kept."""
        self.pid, self.progress, self.stage = None, 0.0, ""
        self.mlx_active_bytes = self.mlx_cache_bytes = self.footprint_bytes = 0


@dataclass(slots=True)
class Model:
    """One loaded model: its order, its slots, who waits for it."""

    order: LoadOrder
    ordered_at: float
    last_used: float
    slots: list[Slot] = field(default_factory=list)
    queue: FairQueue = field(default_factory=FairQueue)  # ids of requests
    load_tickets: list[str] = field(default_factory=list)
    unload_tickets: list[str] = field(default_factory=list)
    next_order: LoadOrder | None = None  # to load once the present workers are gone
    next_tickets: list[str] = field(default_factory=list)
    is_unloading: bool = False
    is_retired: bool = False  # no longer in the settings: finishes what it has, and is unloaded
    outdated: str = ""  # why it is not replaced though its settings name other files
    is_put_away: bool = False  # unloading by the pool's own decision: requests wait until it is loaded again
    keep_alive_s: float | None = None  # as the last request that said something of it wants
    ready_at: float | None = None  # when the first of its workers was ready
    freed_bytes: int = 0
    info: ModelInfo | None = None
    ended_at: float | None = None
    pace_s: float = 0.0  # between the ends of its requests, lately
    moves: int = 0  # how often a request of it went on at another worker

    @property
    def name(self) -> str:
        return self.order.source.name

    @property
    def ttl_s(self) -> float | None:
        """Idle seconds after which it is unloaded."""
        return self.order.ttl_s if self.keep_alive_s is None or self.keep_alive_s < 0 else self.keep_alive_s

    @property
    def pin(self) -> bool:
        """Whether only an unload ends it."""
        return self.order.pin or (self.keep_alive_s is not None and self.keep_alive_s < 0)

    @property
    def idle_deadline(self) -> float:
        """When it is to be unloaded if nobody uses it; infinite without a ttl, while pinned, loading or in use."""
        if self.is_retired and not self.is_unloading:
            return math.inf if self.queue or any(slot.requests for slot in self.slots) else self.last_used
        is_idle = not self.queue and all(slot.state is WorkerState.READY and not slot.requests for slot in self.slots)
        if self.ttl_s is None or self.pin or not is_idle or self.is_unloading:
            return math.inf
        return self.last_used + self.ttl_s

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self.queue or self.load_tickets)

    def waiting(self) -> list[Slot]:
        """The slots that wait for memory."""
        return [slot for slot in self.slots if slot.state is WorkerState.WAITING]

    def failed(self) -> list[Slot]:
        """The slots that have given up."""
        return [slot for slot in self.slots if slot.state is WorkerState.FAILED]

    def request_ended(self, now: float) -> None:
        """One of its requests has ended on a worker."""
        if self.ended_at is not None:
            gap_s = now - self.ended_at
            self.pace_s = gap_s if self.pace_s == 0 else 0.8 * self.pace_s + 0.2 * gap_s
        self.last_used = self.ended_at = now

    def staying(self) -> list[Slot]:
        """The slots that are not on their way out."""
        leaving = {WorkerState.DRAINING, WorkerState.STOPPING}
        return [slot for slot in self.slots if slot.state not in leaving or slot.is_recycled]

    def grow(self, replicas: int, now: float) -> None:
        """Slots for so many replicas, each new one with the lowest number that no slot has, nor one that leaves."""
        for _ in range(replicas - len(self.staying())):
            taken = {slot.replica for slot in self.slots}
            number = min(set(range(1, len(self.slots) + 2)) - taken)
            self.slots.append(Slot(self.name, number, since=now))

    def will_serve(self) -> bool:
        """Whether some replica serves now, or is expected to without anybody asking."""
        return any(slot.state in WILL_SERVE or slot.is_recycled for slot in self.slots)


@dataclass(slots=True)
class Spare:
    """A worker that has no model yet."""

    life: int
    engine: EngineName
    deadline: float
    pid: int | None = None
    is_imported: bool = False
    footprint_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a request may wait, for what, in seconds; infinite: for ever."""

    queue_s: float = math.inf
    first_token_s: float = math.inf
    token_s: float = math.inf
    total_s: float = math.inf


@dataclass(slots=True)
class Asked:
    """A request that has not ended: queued (life 0) or running on a life.

    `tokens` of its answer were delivered. `deaths` under it since the last one; `crashes` that it may have caused.
    `is_moving`: its worker was told to let go of it; another goes on. `is_aborted`: it was told to end, and its client
    awaits only that. `is_over`: it ended with an error, and only its place is still taken. Instants: when it
    came (`asked_at`), was queued, was sent to a worker or got its last token (`moved_at`), is next looked at by the
    deadlines (`wake_at`)."""

    request: Request
    life: int = 0
    queued_at: float = 0.0
    tokens: list[int] = field(default_factory=list)
    deaths: int = 0
    crashes: int = 0
    is_moving: bool = False
    is_aborted: bool = False
    is_over: bool = False
    limits: Limits = field(default_factory=Limits)
    asked_at: float = 0.0
    moved_at: float = 0.0
    wake_at: float = math.inf

    @property
    def is_suspect(self) -> bool:
        """Whether no other suspect may run beside it: see replay.py."""
        return self.crashes > 0
