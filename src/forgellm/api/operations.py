"""The routes of whoever runs the server: drain, reload. They pass on what was asked; the pool decides."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response

from forgellm.api.context import context
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.schemas.operations import DrainBody, ReloadBody
from forgellm.errors import ConfigError, InvalidRequest
from forgellm.supervisor import Drained

blueprint = Blueprint("operations", __name__, url_prefix="/api/admin")


@blueprint.post("/drain")
def drain() -> Response:
    """Let a model, or the whole pool, finish what it has and take nothing new; answers with the report."""
    body = read(DrainBody, is_optional=True)
    ctx = context()
    if body.resume:
        ctx.pool.resume(body.model)
        return json_response({"success": True, "message": f"{body.model or 'Every model'} takes requests again"})
    with ctx.gate.place():
        return json_response(_report(ctx.pool.drain(body.model, timeout_s=body.timeout_s)))


@blueprint.post("/reload")
def reload() -> Response:
    """Read the settings again; answers with what that changes, or with `dry_run` would."""
    body = read(ReloadBody, is_optional=True)
    try:
        plan = context().pool.reload(dry_run=body.dry_run)
    except ConfigError as error:  # the file's fault, and its owner's to mend: no failure of this server
        raise InvalidRequest(error.message) from error
    done = "nothing was changed (dry run)" if body.dry_run else "the settings are in effect"
    return json_response({"success": True, "message": done, **asdict(plan)})


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
