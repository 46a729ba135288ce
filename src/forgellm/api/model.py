"""The `/api/model/*` routes of docs/http-api.md. Each view decodes, calls the pool, and encodes; it decides nothing."""

import math
from contextlib import nullcontext

from flask import Blueprint, Response, request

from forgellm.api import answers, ndjson
from forgellm.api.context import context
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.schemas import GenerateBody, LoadBody, PlanBody, UnloadBody
from forgellm.api.status import info_body, plan_body, status_body, warnings
from forgellm.config import Settings
from forgellm.errors import ModelNotLoaded
from forgellm.supervisor import PoolStatus

blueprint = Blueprint("model", __name__, url_prefix="/api/model")


@blueprint.post("/load")
def load() -> Response:
    """Start loading a model, or with `wait` load it."""
    body = read(LoadBody)
    ctx = context()
    with ctx.gate.place() if body.wait else nullcontext():
        loaded = ctx.pool.load(body.model_name, wait=body.wait, **body.options())
    done = "is already loaded" if loaded.already_loaded else "loaded" if body.wait else "loading started"
    answer = {
        "success": True,
        "message": f"Model {loaded.model} {done}",
        "model_name": loaded.model,
        "adapter_path": loaded.adapter_path,
        "original_adapter_selection": body.adapter_path,
    }
    if body.wait:
        answer["loading_time"] = loaded.loading_time_s or 0.0
        model = ctx.pool.status().model(loaded.model)
        answer["warnings"] = warnings(model) if model else []
    return json_response(answer)


@blueprint.post("/plan")
def plan() -> Response:
    """What a load would need and evict now, or why it cannot be. Loads nothing."""
    body = read(PlanBody)
    found = context().pool.plan(body.model_name, **body.options())
    return json_response(plan_body(found))


@blueprint.get("/status")
def status() -> Response:
    """The state of the current model, or of `?model=`, and of all."""
    return json_response(status_body(context().pool.status(), request.args.get("model")))


@blueprint.get("/info")
def info() -> Response:
    """What a loaded model is."""
    return json_response(info_body(context().pool.status(), request.args.get("model")))


@blueprint.post("/unload")
def unload() -> Response:
    """Unload a model; answers when its memory is back."""
    body = read(UnloadBody, is_optional=True)
    ctx = context()
    with ctx.gate.place():
        unloaded = ctx.pool.unload(body.model_name, force=body.force)
    if unloaded.was_loaded:
        message = f"Model {unloaded.model} unloaded"
    elif unloaded.model:
        message = f"Model {unloaded.model} was not loaded"
    else:
        message = "No model was loaded"
    return json_response({"success": True, "message": message, "freed_bytes": unloaded.freed_bytes})


@blueprint.post("/generate")
def generate() -> Response:
    """Answer a prompt, whole or as a stream of JSON lines."""
    body = read(GenerateBody)
    ctx = context()
    pool_status = ctx.pool.status()
    model = body.model or pool_status.current
    if model is None:
        raise ModelNotLoaded("no model is loaded; POST /api/model/load first, or name one in `model`", field="model")
    answer = answers.begin([body.to_request(model, _system_prompt(pool_status, ctx.settings, model))])
    if body.streaming:
        mimetype = request.accept_mimetypes.best_match(ndjson.MIMETYPES, default=ndjson.MIMETYPES[0])
        return answers.stream(
            answer, ndjson.lines(answer), mimetype=mimetype, failure=ndjson.failure, status_wait_s=math.inf
        )
    text = "".join(token.text for _, token in answer.pieces() if token)
    return json_response({"success": True, "text": text, "completion": text, **ndjson.counts(answer.generations[0])})


def _system_prompt(status: PoolStatus, settings: Settings, model: str) -> str | None:
    """That of the load; for a model that this request will have loaded, that which the load will have."""
    known = status.model(model)
    if known is not None:
        return known.system_prompt
    name = settings.model_name(model)
    config = settings.models.get(name)
    return status.put_away.get(name, config.system_prompt if config else None)
