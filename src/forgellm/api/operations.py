"""The routes of whoever runs the server: drain. They pass on what was asked; the pool decides."""

from typing import Any

from flask import Blueprint, Response, request

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.schemas.operations import DrainBody
from forgellm.supervisor import Drained

blueprint = Blueprint("operations", __name__, url_prefix="/api/admin")


@blueprint.post("/drain")
def drain() -> Response:
    """Let a model, or the whole pool, finish what it has and take nothing new; answers with the report."""
    raw = request.get_data()
    body = DrainBody.decode(raw, request.content_type, request.content_encoding) if raw else DrainBody()
    ctx = context()
    if body.resume:
        ctx.pool.resume(body.model)
        return json_response({"success": True, "message": f"{body.model or 'Every model'} takes requests again"})
    with ctx.gate.place():
        return json_response(_report(ctx.pool.drain(body.model, timeout_s=body.timeout_s)))


def _report(drained: Drained) -> dict[str, Any]:
    return {
        "success": True,
        "message": f"{drained.model or 'Every model'} is drained; it takes requests again when it is resumed",
        "model_name": drained.model,
        "finished": drained.finished,
        "moved": drained.moved,
        "aborted": drained.aborted,
        "left": drained.left,
        "took_s": round(drained.took_s, 3),
    }
