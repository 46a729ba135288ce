"""The immutable picture of the pool that every page, route and command prints. Data only; made by Pool.status()."""

from dataclasses import dataclass

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
    """One model: the best state of its replicas, and the replicas. `error` says why it failed, or None."""

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
    context_length: int | None  # as asked for; what it came to is in `info`
    max_kv_size: int | None
    info: ModelInfo | None
    workers: tuple[WorkerStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Everything. `current` is the model last asked for by a load, the default of /api/model/*."""

    current: str | None
    models: tuple[ModelStatus, ...]
    spare_pid: int | None
    spare_is_warm: bool
    is_stopping: bool

    def model(self, name: str) -> ModelStatus | None:
        """The model of that name, or None if it is not loaded."""
        return next((model for model in self.models if model.name == name), None)
