"""GET /v1/models: what can be asked for, and what state it is in. Reads the pool's picture and the catalog."""

from collections.abc import Iterator
from pathlib import Path

from flask import Response

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.schemas import openai_answers as out
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
    loaded = pool.status().models
    for each in loaded:
        yield out.Model(
            id=each.name,
            created=_created(each.path),
            state=each.state,
            context_length=each.info.context_length if each.info else each.context_length,
            aliases=list(each.aliases),
            capabilities=list(each.info.capabilities) if each.info else None,
        )
    names = {each.name for each in loaded}
    for entry in pool.catalog():
        if entry.id not in names:
            yield out.Model(
                id=entry.id,
                created=_created(entry.path),
                state=WorkerState.STOPPED,
                context_length=None,
                aliases=list(entry.aliases),
                capabilities=None,
            )


def _created(path: str | None) -> int:
    try:
        return int(Path(path).stat().st_mtime) if path else 0
    except OSError:
        return 0
