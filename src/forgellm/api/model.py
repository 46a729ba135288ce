"""The `/api/model/*` routes of docs/http-api.md. Each view decodes, calls the pool, and encodes; it decides nothing."""

from contextlib import nullcontext

from flask import Blueprint, Response, request

from forgellm.api import access, ndjson
from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.schemas import GenerateBody, LoadBody, UnloadBody
from forgellm.api.status import info_body, plan_body, status_body
from forgellm.api.wsgi_host import client_gone
from forgellm.config import Settings
from forgellm.errors import InvalidRequest, ModelNotLoaded
from forgellm.supervisor import PoolStatus

blueprint = Blueprint("model", __name__, url_prefix="/api/model")


@blueprint.post("/load")
def load() -> Response:
    """Start loading a model, or with `wait` load it."""
    body = LoadBody.decode(request.get_data(), request.content_type, request.content_encoding)
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
    return json_response(answer)


@blueprint.post("/plan")
def plan() -> Response:
    """What a load would need and evict now, or why it cannot be. Loads nothing."""
    body = LoadBody.decode(request.get_data(), request.content_type, request.content_encoding)
    if body.wait:
        raise InvalidRequest("a plan loads nothing there is to wait for; leave `wait` out", field="wait")
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
    raw = request.get_data()
    body = UnloadBody.decode(raw, request.content_type, request.content_encoding) if raw else UnloadBody()
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
    body = GenerateBody.decode(request.get_data(), request.content_type, request.content_encoding)
    ctx = context()
    pool_status = ctx.pool.status()
    model = body.model or pool_status.current
    if model is None:
        raise ModelNotLoaded("no model is loaded; POST /api/model/load first, or name one in `model`", field="model")
    [asked] = access.adopt([body.to_request(model, _system_prompt(pool_status, ctx.settings, model))])
    answer = ndjson.Answer(ctx.pool, asked, ctx.gate, client_gone(request.environ))
    access.follow([answer.generation])
    if not body.streaming:
        return _whole(answer)
    return _stream(answer)


def _system_prompt(status: PoolStatus, settings: Settings, model: str) -> str | None:
    """That of the load; for a model that this request will have loaded, that which the load will have."""
    known = status.model(model)
    if known is not None:
        return known.system_prompt
    name = settings.model_name(model)
    config = settings.models.get(name)
    return status.put_away.get(name, config.system_prompt if config else None)


def _whole(answer: ndjson.Answer) -> Response:
    try:
        text = "".join(token.text for tokens in answer.batches() for token in tokens)
    finally:
        answer.close()
    body = {"success": True, "text": text, "completion": text, **ndjson.counts(answer.generation)}
    return json_response(body)


def _stream(answer: ndjson.Answer) -> Response:
    """The status line waits for the first token, so that what goes wrong before it has a real status."""
    batches = answer.batches()
    try:
        first = next(batches, [])
    except BaseException:  # whatever it was, it goes on up; only the place in the gate is given back
        answer.close()
        raise
    response = Response(ndjson.lines(first, batches, answer.generation), mimetype=_stream_type())
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"  # nginx would hold the lines back
    response.call_on_close(answer.close)
    return response


def _stream_type() -> str:
    choices = ["application/x-ndjson", "text/plain"]
    return request.accept_mimetypes.best_match(choices, default=choices[0])
