"""Draws a PoolStatus as the JSON of the /api/model/* contract. Pure but for the wall clock: no pool, no HTTP."""

import time
from dataclasses import asdict
from typing import Any

from forgellm.states import IS_LOADED, IS_LOADING, WorkerState
from forgellm.supervisor.status import LoadPlan, ModelStatus, PoolStatus, WorkerStatus


def wall_clock(instant: float, clock: float) -> float:
    """The unix time of a monotonic instant on a machine where it is now `clock`, for people to read; nothing is decided
    by it."""
    return round(time.time() + instant - clock, 3)


def absent(name: str | None) -> dict[str, Any]:
    """The picture of a model that is not loaded, or of no model at all."""
    return {
        "loaded": False,
        "is_loading": False,
        "model_name": name,
        "adapter_path": None,
        "state": WorkerState.STOPPED,
        "progress": 0.0,
        "stage": "",
        "since": None,
        "pid": None,
        "life": None,
        "restarts": 0,
        "memory": _memory(()),
        "queue_depth": 0,
        "in_flight": 0,
        "draining": False,
        "workers": [],
    }


def model_picture(model: ModelStatus, clock: float) -> dict[str, Any]:
    """One model: `pid`, `life` and `stage` are those of its best worker, `memory` and `restarts` sums.

    `clock`: see PoolStatus."""
    best = next((w for w in model.workers if w.state == model.state), None)
    picture: dict[str, Any] = {
        "loaded": model.state in IS_LOADED,
        "is_loading": model.state in IS_LOADING,
        "model_name": model.name,
        "adapter_path": model.adapter_path,
        "state": model.state,
        "progress": model.progress,
        "stage": best.stage if best else "",
        "since": wall_clock(model.since, clock),
        "pid": best.pid if best else None,
        "life": best.life if best else None,
        "restarts": sum(worker.restarts for worker in model.workers),
        "memory": _memory(model.workers),
        "queue_depth": model.queue_depth,
        "in_flight": model.in_flight,
        "draining": model.is_drained,
        "workers": [_worker(worker, clock) for worker in model.workers],
    }
    if model.info is not None:
        picture["capabilities"] = list(model.info.capabilities)
        picture["warnings"] = warnings(model)
    if model.error is not None:
        picture |= {"error": model.error, "error_code": model.error_code}
    return picture


def warnings(model: ModelStatus) -> list[str]:
    """What whoever uses a loaded model should know, a word and a sentence each."""
    found = (
        [f"outdated: its settings name other files, which were not loaded: {model.outdated}"] if model.outdated else []
    )
    if model.info is not None and model.info.integrity == "unverified":
        found.append("unverified: no sha256 of its weights was compared, so damage to the files would not be noticed")
    return found


def status_body(status: PoolStatus, name: str | None = None) -> dict[str, Any]:
    """The answer of /api/model/status for `name`, or for the current model."""
    wanted = name or status.current
    model = status.model(wanted) if wanted else None
    picture = model_picture(model, status.clock) if model else absent(wanted)
    return {
        "success": True,
        **picture,
        "models": [model_picture(each, status.clock) for each in status.models],
        "spare": {"pid": status.spare_pid, "is_warm": status.spare_is_warm},
        "is_stopping": status.is_stopping,
        "is_draining": status.is_drained,
        "log_stem": status.log_stem,
    }


def info_body(status: PoolStatus, name: str | None = None) -> dict[str, Any]:
    """The answer of /api/model/info: the status of one model and what it turned out to be."""
    wanted = name or status.current
    model = status.model(wanted) if wanted else None
    if model is None:
        return {"success": True, **absent(wanted)}
    details: dict[str, Any] = {
        "path": model.path,
        "system_prompt": model.system_prompt,
        "ttl_s": model.ttl_s,
        "pin": model.pin,
        "info": asdict(model.info) if model.info else None,
    }
    return {"success": True, **model_picture(model, status.clock), **details}


def plan_body(plan: LoadPlan) -> dict[str, Any]:
    """The answer of /api/model/plan."""
    need = plan.need
    return {
        "success": True,
        "model_name": plan.model,
        "fits": plan.fits,
        "must_wait": plan.must_wait,
        "need_bytes": {
            "weights": need.weights_bytes,
            "kv": need.kv_bytes,
            "runtime": need.runtime_bytes,
            "transient": need.transient_bytes,
            "total": need.total_bytes,
        },
        "budget_bytes": plan.budget_bytes,
        "reserved_bytes": plan.reserved_bytes,
        "would_evict": list(plan.would_evict),
        "reason": plan.reason,
    }


def _worker(worker: WorkerStatus, clock: float) -> dict[str, Any]:
    return {
        "name": worker.name,
        "replica": worker.replica,
        "life": worker.life,
        "state": worker.state,
        "since": wall_clock(worker.since, clock),
        "reason": worker.reason,
        "pid": worker.pid,
        "restarts": worker.restarts,
        "progress": worker.progress,
        "stage": worker.stage,
        "in_flight": worker.in_flight,
        "memory": _memory((worker,)),
    }


def _memory(workers: tuple[WorkerStatus, ...]) -> dict[str, int]:
    return {
        "estimate": sum(worker.memory.estimate_bytes for worker in workers),
        "mlx_active": sum(worker.memory.mlx_active_bytes for worker in workers),
        "mlx_cache": sum(worker.memory.mlx_cache_bytes for worker in workers),
        "footprint": sum(worker.memory.footprint_bytes for worker in workers),
    }
