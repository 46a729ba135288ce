"""Whether the pool serves, and what is wrong with it if not. Pure: reads pictures, asks nothing, knows no HTTP."""

from dataclasses import dataclass

from forgellm.states import IS_LOADING, WorkerState
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.status import ModelStatus, PoolStatus


@dataclass(frozen=True, slots=True)
class Readiness:
    """`reasons`: what is wrong, in sentences; a pool can be ready, and degraded."""

    is_ready: bool
    reasons: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        if not self.is_ready:
            return "not_ready"
        return "degraded" if self.reasons else "ok"


def readiness(status: PoolStatus, counts: Counts, limit_s: float) -> Readiness:
    """Ready: some loaded model serves, or none is loaded and one can be. A model serves if a worker of it is ready and
    its requests, if it has any, have seen progress within `limit_s` (0: whenever): a listening socket is not enough."""
    if status.is_stopping:
        return Readiness(is_ready=False, reasons=("it is shutting down",))
    if status.is_drained:
        return Readiness(is_ready=False, reasons=("it is drained",))
    found = [(_serves(model, counts, limit_s), _reason(model, counts, limit_s)) for model in status.models]
    is_ready = any(serves for serves, _ in found) or not found
    return Readiness(is_ready, tuple(reason for _, reason in found if reason))


def _serves(model: ModelStatus, counts: Counts, limit_s: float) -> bool:
    return model.state is WorkerState.READY and not model.is_drained and not _is_stalled(model, counts, limit_s)


def _reason(model: ModelStatus, counts: Counts, limit_s: float) -> str:
    """What is wrong with a model, or ""."""
    if _is_stalled(model, counts, limit_s):
        known = counts.model(model.name)
        waited_s = known.waiting_s if known else 0.0
        asked = model.in_flight + model.queue_depth
        return f"{model.name}: {asked} requests, and no progress for {waited_s:.0f} s"
    if model.is_drained:
        return f"{model.name} is drained"
    if model.error is not None:
        return f"{model.name}: {model.error}"
    missing = [worker for worker in model.workers if worker.state is not WorkerState.READY]
    if missing:
        return f"{model.name}: " + ", ".join(f"{worker.name} is {worker.state}" for worker in missing)
    return ""


def _is_stalled(model: ModelStatus, counts: Counts, limit_s: float) -> bool:
    """Requests wait, and nothing moves; while the model still loads that is no wonder."""
    known = counts.model(model.name)
    return known is not None and 0 < limit_s < known.waiting_s and model.state not in IS_LOADING
