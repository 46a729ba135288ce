"""The routes that list what could be loaded. They read the catalog, and never look outside the folders it names."""

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.catalog import CatalogEntry
from forgellm.errors import ModelNotFound

blueprint = Blueprint("catalog", __name__, url_prefix="/api")

_TRAINED = frozenset({"cpt", "ift"})
_GB = 1 << 30


@blueprint.get("/models")
def models() -> Response:
    """Everything that could be loaded."""
    return _listing()


@blueprint.get("/base_models")
def base_models() -> Response:
    """Models that were not trained here."""
    return _listing("base")


@blueprint.get("/cpt_models")
def cpt_models() -> Response:
    """Models that came out of continued pre-training (`cpt/` in models_dir)."""
    return _listing("cpt")


@blueprint.get("/ift_models")
def ift_models() -> Response:
    """Models that came out of instruction fine-tuning (`ift/` in models_dir)."""
    return _listing("ift")


@blueprint.get("/checkpoints")
def checkpoints() -> Response:
    """Adapter files of trained models: of all, or of the one in `?model_dir=`."""
    wanted = request.args.get("model_dir")
    entries = [entry for entry in context().pool.catalog() if entry.kind in _TRAINED]
    if wanted is not None:
        entries = [entry for entry in entries if wanted in {entry.id, entry.name, entry.path}]
        if not entries:
            raise ModelNotFound(f"no trained model is called {wanted!r}; GET /api/models lists them", field="model_dir")
    found = [_checkpoint(path) for entry in entries for path in sorted(Path(entry.path or "").glob("*.safetensors"))]
    return json_response({"success": True, "checkpoints": [each for each in found if "adapter" in each["name"]]})


def _listing(kind: str | None = None) -> Response:
    entries = [entry for entry in context().pool.catalog() if kind in {None, entry.kind}]
    return json_response({"success": True, "models": [entry_body(entry) for entry in entries]})


def entry_body(entry: CatalogEntry) -> dict[str, Any]:
    """One line of a list of models."""
    return {
        "id": entry.id,
        "name": entry.name,
        "path": entry.path,
        "type": entry.kind,
        "size": _gigabytes(entry.size_bytes),
        "integrity": entry.integrity,
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    return {"name": path.name, "path": str(path), "size": _gigabytes(path.stat().st_size)}


def _gigabytes(size_bytes: int) -> float:
    return round(size_bytes / _GB, 3)
