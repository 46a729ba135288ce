"""Turns the pool's records into the immutable picture that is shown. Pure; reads, never decides."""

import math
from collections.abc import Collection, Iterable

from forgellm.states import WorkerState
from forgellm.supervisor.budget import Budget
from forgellm.supervisor.slots import Model, Slot, Spare
from forgellm.supervisor.status import MemoryStatus, ModelStatus, PoolStatus, WorkerStatus

_S = WorkerState
BEST_FIRST = (
    _S.READY,
    _S.DRAINING,
    _S.LOADING,
    _S.STARTING,
    _S.WAITING,
    _S.BACKOFF,
    _S.STOPPING,
    _S.FAILED,
    _S.STOPPED,
)


def picture(
    current: str | None,
    models: Iterable[Model],
    spare: Spare | None,
    budget: Budget,
    *,
    is_stopping: bool,
    is_drained: bool,
    drained: Collection[str],
    log_stem: str,
    put_away: dict[str, str | None],
) -> PoolStatus:
    """Everything, as of now. `is_drained`: the whole pool; `drained`: models, by name."""
    return PoolStatus(
        current=current,
        models=tuple(_model(model, budget, is_drained=is_drained or model.name in drained) for model in models),
        spare_pid=spare.pid if spare else None,
        spare_is_warm=bool(spare and spare.is_imported),
        is_stopping=is_stopping,
        budget_bytes=budget.limit_bytes,
        reserved_bytes=budget.reserved_bytes(),
        is_drained=is_drained,
        log_stem=log_stem,
        put_away=put_away,
    )


def _model(model: Model, budget: Budget, *, is_drained: bool) -> ModelStatus:
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
        ttl_s=model.ttl_s,
        pin=model.pin,
        idle_deadline=model.idle_deadline if model.idle_deadline < math.inf else None,
        is_drained=is_drained,
        outdated=model.outdated or None,
        aliases=model.order.aliases,
        context_length=model.order.options.context_length,
        max_kv_size=model.order.options.max_kv_size,
        info=model.info,
        workers=tuple(_worker(slot, budget.need_of(slot.order or model.order).total_bytes) for slot in model.slots),
    )


def _worker(slot: Slot, estimate_bytes: int) -> WorkerStatus:
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
            estimate_bytes=estimate_bytes,
            mlx_active_bytes=slot.mlx_active_bytes,
            mlx_cache_bytes=slot.mlx_cache_bytes,
            footprint_bytes=slot.footprint_bytes,
        ),
    )
