"""GET /v1/models: what can be asked for, and what state it is in. Reads the pool's picture and the catalog."""

from collections.abc import Iterator
from pathlib import Path

from flask import Response

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.schemas import openai_answers as out
from forgellm.catalog import CatalogEntry
from forgellm.errors import ModelNotFound
from forgellm.states import WorkerState


def models() -> Response:
    """All models: loaded ones first."""
    return json_response(out.Models(data=list(_models())))


def model(model: str) -> Response:
    """One model, by its name or an alias; both may hold slashes."""
    found = next((each for each in _models() if model == each.id or model in each.aliases), None)
    if found is None:
        raise ModelNotFound(f"no model is called {model!r}; GET /v1/models lists them", field="model")
    return json_response(found)


def _models() -> Iterator[out.Model]:
    pool = context().pool
    known = {entry.id: entry for entry in pool.catalog()}
    for each in pool.status().models:
        info, entry = each.info, known.pop(each.name, None)
        yield out.Model(
            id=each.name,
            created=_created(each.path),
            state=each.state,
            context_length=info.context_length if info else each.context_length,
            aliases=list(each.aliases),
            capabilities=list(info.capabilities) if info else _by_task(entry),
        )
    for entry in known.values():
        yield out.Model(
            id=entry.id,
            created=_created(entry.path),
            state=WorkerState.STOPPED,
            context_length=None,
            aliases=list(entry.aliases),
            capabilities=_by_task(entry),
        )


def _by_task(entry: CatalogEntry | None) -> list[str] | None:
    """What is known of a model that is not loaded."""
    return None if entry is None else ["embedding" if entry.task == "embed" else "completion"]


def _created(path: str | None) -> int:
    try:
        return int(Path(path).stat().st_mtime) if path else 0
    except OSError:
        return 0
