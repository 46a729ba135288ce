"""What a pool's status looks like, for tests that have no pool: everything idle and known, but for what they name."""

from dataclasses import replace
from typing import Any

from forgellm.states import WorkerState
from forgellm.supervisor import ModelStatus, PoolStatus

_MODEL = ModelStatus(
    name="m",
    path=None,
    adapter_path=None,
    state=WorkerState.READY,
    since=0.0,
    progress=0.0,
    queue_depth=0,
    in_flight=0,
    error=None,
    error_code=None,
    system_prompt=None,
    ttl_s=None,
    pin=False,
    context_length=None,
    max_kv_size=None,
    info=None,
    workers=(),
)
_POOL = PoolStatus(
    current=None,
    models=(),
    spare_pid=None,
    spare_is_warm=False,
    is_stopping=False,
    budget_bytes=None,
    reserved_bytes=0,
)


def model_status(name: str, **differs: Any) -> ModelStatus:
    """A ready model, idle."""
    return replace(_MODEL, name=name, **differs)


def pool_status(*models: ModelStatus, **differs: Any) -> PoolStatus:
    """A pool with these models."""
    return replace(_POOL, models=models, **differs)
