"""GET /api/tags, /api/ps, /api/version and POST /api/show: what there is. Reads the pool's picture and the catalog."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from flask import Response

from forgellm.api.context import context
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.schemas import ollama_answers as out
from forgellm.api.schemas.ollama_models import ShowBody
from forgellm.api.status import wall_clock
from forgellm.catalog import CatalogEntry
from forgellm.errors import ModelNotFound
from forgellm.supervisor import ModelStatus

_WORDS: Mapping[str, str] = {
    "completion": "completion",
    "tools": "tools",
    "embedding": "embedding",
    "reasoning": "thinking",
}
"""Our words for what a model can do, and Ollama's; the others have none there."""

_NEVER = datetime(2300, 1, 1, tzinfo=UTC).timestamp()
"""Far enough for every client to say "for ever", and not so far that one's calendar ends there."""


def tags() -> Response:
    """All models that can be asked for."""
    pool = context().pool
    loaded = {each.name: each for each in pool.status().models}
    found = [_tag(entry.id, entry.path, entry.size_bytes, loaded.pop(entry.id, None)) for entry in pool.catalog()]
    found += [_tag(each.name, each.path, 0, each) for each in loaded.values()]
    return json_response(out.Tags(models=found))


def ps() -> Response:
    """The models that are loaded."""
    status = context().pool.status()
    return json_response(out.Loadeds(models=[_loaded(each, status.clock) for each in status.models if each.info]))


def show() -> Response:
    """One model, by its name or an alias."""
    body = read(ShowBody)
    name = body.name
    pool = context().pool
    status = pool.status().model(name)
    entry = next((each for each in pool.catalog() if name == each.id or name in each.aliases), None)
    if status is None and entry is None:
        raise ModelNotFound(f"no model is called {body.model!r}; GET /api/tags lists them", field="model")
    path = entry.path if entry is not None else status.path if status is not None else None
    info: dict[str, object] = {"general.architecture": "mlx"}
    if status is not None and status.info is not None:
        info["general.parameter_count"] = status.info.parameters
        info["mlx.context_length"] = status.info.context_length
    return json_response(
        out.Shown(
            modified_at=_modified(path),
            details=_details(path, status),
            model_info=info,
            capabilities=_capabilities(entry, status),
        )
    )


def version() -> Response:
    """This server's version, with a hyphen before what is not a release: clients compare numbers."""
    return json_response(out.Version(version=importlib.metadata.version("forgellm").replace(".dev", "-dev")))


def _tag(name: str, path: str | None, size_bytes: int, status: ModelStatus | None) -> out.Tag:
    return out.Tag(
        name=name,
        model=name,
        modified_at=_modified(path),
        size=size_bytes,
        digest=_digest(name, path),
        details=_details(path, status),
    )


def _loaded(status: ModelStatus, clock: float) -> out.Loaded:
    info = status.info
    on_gpu = info is not None and info.device == "gpu"
    held = sum(worker.memory.mlx_active_bytes for worker in status.workers)
    return out.Loaded(
        name=status.name,
        model=status.name,
        size=sum(worker.memory.footprint_bytes for worker in status.workers),
        size_vram=held if on_gpu else 0,
        digest=_digest(status.name, status.path),
        details=_details(status.path, status),
        expires_at=_iso(_expires(status, clock)),
        context_length=info.context_length if info is not None else 0,
    )


def _details(path: str | None, status: ModelStatus | None) -> out.Details:
    info = status.info if status is not None else None
    return out.Details(
        format="gguf" if path is not None and path.endswith(".gguf") else "safetensors",
        parameter_size=_short(info.parameters) if info is not None else "",
        quantization_level=info.quantization if info is not None else "",
    )


def _capabilities(entry: CatalogEntry | None, status: ModelStatus | None) -> list[str]:
    if status is not None and status.info is not None:
        return [_WORDS[each] for each in status.info.capabilities if each in _WORDS]
    return ["embedding" if entry is not None and entry.task == "embed" else "completion"]


def _short(number: int) -> str:
    """1234567890 as "1.2B"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number) if number else ""


def _expires(status: ModelStatus, clock: float) -> float:
    """When it is unloaded if nobody uses it from now on, in unix time. `clock`: see PoolStatus."""
    if status.idle_deadline is not None:
        return min(wall_clock(status.idle_deadline, clock), _NEVER)
    return _NEVER if status.pin or status.ttl_s is None else min(time.time() + status.ttl_s, _NEVER)


def _modified(path: str | None) -> str:
    return _iso(_changed_ns(path) / 1e9)


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def _digest(name: str, path: str | None) -> str:
    return hashlib.sha256(f"{name}\0{path}\0{_changed_ns(path)}".encode("utf-8", "replace")).hexdigest()


def _changed_ns(path: str | None) -> int:
    try:
        return Path(path).stat().st_mtime_ns if path else 0
    except OSError:
        return 0
