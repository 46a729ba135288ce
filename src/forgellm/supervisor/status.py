"""The immutable picture of the pool that every page, route and command prints. Data only; made by Pool.status()."""

from dataclasses import dataclass, field

from forgellm.messages import ModelInfo
from forgellm.states import WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatus:
    """Bytes of one worker: what a load was expected to need, what mlx holds, and what the system charges for it."""

    estimate_bytes: int = 0
    mlx_active_bytes: int = 0
    mlx_cache_bytes: int = 0
    footprint_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One replica. `since` is a monotonic instant, in seconds; `life` counts the processes of the whole pool."""

    name: str  # "smollm2#1"
    replica: int
    life: int
    state: WorkerState
    since: float
    reason: str
    pid: int | None
    restarts: int
    progress: float
    stage: str
    in_flight: int
    memory: MemoryStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model: the best state of its replicas, and the replicas. `error` says why it failed, `outdated` why it goes
    on with files that its settings no longer name; or None. `idle_deadline`: the monotonic instant at which it is
    unloaded if nobody uses it until then; None while it is used, and if only an unload ends it."""

    name: str
    path: str | None
    adapter_path: str | None
    state: WorkerState
    since: float
    progress: float
    queue_depth: int
    in_flight: int
    error: str | None
    error_code: str | None
    system_prompt: str | None
    ttl_s: float | None
    pin: bool
    idle_deadline: float | None = None
    is_drained: bool = False
    context_length: int | None  # as asked for; what it came to is in `info`
    max_kv_size: int | None
    info: ModelInfo | None
    workers: tuple[WorkerStatus, ...]
    outdated: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Everything. `current` is the model last asked for by a load, the default of /api/model/*. `reserved_bytes` is
    what is spoken for of `budget_bytes` (None: no limit), the spare's footprint included. `log_stem`: the paths of
    workers' logs begin with it, the life and ".log" follow. `put_away`: models that come back as they were loaded when
    they are wanted, with their system prompts. `clock`: the monotonic instant at which the picture was asked for, on
    the machine whose instants it holds."""

    current: str | None
    models: tuple[ModelStatus, ...]
    spare_pid: int | None
    spare_is_warm: bool
    is_stopping: bool
    is_drained: bool = False
    budget_bytes: int | None
    reserved_bytes: int
    log_stem: str = ""
    put_away: dict[str, str | None] = field(default_factory=dict)
    clock: float = 0.0

    def model(self, name: str) -> ModelStatus | None:
        """The model of that name or alias, or None if it is not loaded."""
        return next((model for model in self.models if name == model.name or name in model.aliases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes of one load: weights in their layout, KV cache for the planned tokens, the process with its libraries, and
    what only the loading takes."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    runtime_bytes: int = 0
    transient_bytes: int = 0

    @property
    def lasting_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.runtime_bytes

    @property
    def total_bytes(self) -> int:
        return self.lasting_bytes + self.transient_bytes

    def times(self, workers: int) -> "Need":
        return Need(
            weights_bytes=self.weights_bytes * workers,
            kv_bytes=self.kv_bytes * workers,
            runtime_bytes=self.runtime_bytes * workers,
            transient_bytes=self.transient_bytes * workers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What a load would do. `need` is that of all workers it would start; `budget_bytes` None: there is no limit.

    `fits`: it would be accepted, once the models in `would_evict` are gone; `must_wait`: not before memory comes back.
    `reason` says why it does not fit, "" if it does."""

    model: str
    need: Need
    budget_bytes: int | None
    reserved_bytes: int
    would_evict: tuple[str, ...] = ()
    fits: bool = True
    must_wait: bool = False
    reason: str = ""
