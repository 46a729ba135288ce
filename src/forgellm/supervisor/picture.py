"""Turns the pool's records into the immutable picture that is shown. Pure; reads, never decides."""

from collections.abc import Iterable

from forgellm.states import WorkerState
from forgellm.supervisor.slots import LoadOrder, Model, Slot, Spare
from forgellm.supervisor.status import MemoryStatus, ModelStatus, PoolStatus, WorkerStatus

_S = WorkerState
BEST_FIRST = (_S.READY, _S.DRAINING, _S.LOADING, _S.STARTING, _S.BACKOFF, _S.STOPPING, _S.FAILED, _S.STOPPED)


def picture(current: str | None, models: Iterable[Model], spare: Spare | None, is_stopping: bool) -> PoolStatus:
    """Everything, as of now."""
    return PoolStatus(
        current=current,
        models=tuple(_model(model) for model in models),
        spare_pid=spare.pid if spare else None,
        spare_is_warm=bool(spare and spare.is_imported),
        is_stopping=is_stopping,
    )


def estimate_bytes(order: LoadOrder) -> int:
    """Weights of one worker once loaded: the tensor files' sum, or 4 bytes a parameter where they will be f32."""
    f32_bytes = 4 * order.source.parameters
    layout, budget = order.options.layout, order.options.memory_budget_bytes
    is_f32 = layout == "f32" or (layout == "auto" and f32_bytes <= budget)
    return max(order.source.weights_bytes, f32_bytes if is_f32 else 0)


def _model(model: Model) -> ModelStatus:
    best = min(model.slots, key=lambda slot: BEST_FIRST.index(slot.state))
    failed = next((slot.failure for slot in model.slots if slot.state is _S.FAILED and slot.failure), None)
    return ModelStatus(
        name=model.name,
        path=model.order.source.path,
        adapter_path=model.order.source.adapter_path,
        state=best.state,
        since=best.since,
        progress=best.progress,
        queue_depth=len(model.queue),
        in_flight=sum(len(slot.requests) for slot in model.slots),
        error=failed.message if failed else None,
        error_code=failed.code if failed else None,
        system_prompt=model.order.system_prompt,
        ttl_s=model.order.ttl_s,
        pin=model.order.pin,
        context_length=model.order.options.context_length,
        max_kv_size=model.order.options.max_kv_size,
        info=model.info,
        workers=tuple(_worker(slot, model.order) for slot in model.slots),
    )


def _worker(slot: Slot, order: LoadOrder) -> WorkerStatus:
    return WorkerStatus(
        name=slot.name,
        replica=slot.replica,
        life=slot.life,
        state=slot.state,
        since=slot.since,
        reason=slot.reason,
        pid=slot.pid,
        restarts=slot.restarts,
        progress=slot.progress,
        stage=slot.stage,
        in_flight=len(slot.requests),
        memory=MemoryStatus(
            estimate_bytes=estimate_bytes(order),
            mlx_active_bytes=slot.mlx_active_bytes,
            mlx_cache_bytes=slot.mlx_cache_bytes,
            footprint_bytes=slot.footprint_bytes,
        ),
    )
