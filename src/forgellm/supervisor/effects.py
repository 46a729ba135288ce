"""What the pool wants done: the only way in which its decisions reach the world. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from forgellm.errors import ForgeLLMError
from forgellm.messages import Chunk, Command, EngineName, Prefill
from forgellm.states import WorkerState
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.slots import DeathCause, LoadOrder
from forgellm.supervisor.status import LoadPlan


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker process that imports this engine and waits for a Load."""

    life: int
    engine: EngineName


@dataclass(frozen=True, slots=True)
class Send:
    life: int
    command: Command


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to the process group of a life."""

    life: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A load has ended well. `loading_time_s` counts from the load call."""

    model: str
    adapter_path: str | None
    loading_time_s: float | None
    already_loaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    """An unload has ended: every process of the model is gone. `freed_bytes` is what they were charged for."""

    model: str | None
    was_loaded: bool
    freed_bytes: int
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """A drain has ended. Of the requests that it found: how many finished, were aborted at its deadline, and are `left`
    on a worker that does not let go of them. `moved`: how often one of them went on at another worker meanwhile."""

    model: str | None
    finished: int
    moved: int
    aborted: int
    left: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What is loaded, by name, as it was asked for; and of those, which could not follow their settings so far."""

    by_name: Mapping[str, LoadOrder]
    outdated: tuple[str, ...] = ()


News = Chunk | Prefill | Loaded | Orders | Unloaded | Drained | LoadPlan | Counts | ForgeLLMError


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give news to whoever waits under that id: a request's Generation, or the ticket of a load or an unload."""

    to: str
    news: News


@dataclass(frozen=True, slots=True)
class Announce:
    """A worker moved from one state to another; for logs and watchers."""

    worker: str
    life: int
    old: WorkerState
    new: WorkerState
    reason: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A load got on: 0..1, and what it is doing; for watchers."""

    worker: str
    life: int
    progress: float
    stage: str


@dataclass(frozen=True, slots=True)
class Died:
    """A worker's process ended though nobody wanted it to; for logs and watchers.

    Causes: "hang" (found by the clocks), "memory" (above the hard limit) and "timeout" (a start or a load that took too
    long) were the supervisor's kills; "gpu_oom": the GPU's memory ran out, says its log; "load_error": its model cannot
    be loaded; "oom": the kernel killed it for want of memory, and counted that; "killed": a SIGKILL or SIGTERM from
    outside, or the system's without a word; "signal": any other signal, most often a crash; "exit": it ended by
    itself."""

    worker: str
    life: int
    cause: DeathCause
    reason: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """A model is unloaded though nobody asked for it: to make room for another ("memory"), or for its ttl ("idle")."""

    model: str
    cause: Literal["memory", "idle"]
    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A model goes on serving from the files it has, though its settings name others now: those cannot be loaded."""

    model: str
    reason: str


Effect = Spawn | Send | Signal | Deliver | Announce | Progressed | Died | Evicted | Kept
