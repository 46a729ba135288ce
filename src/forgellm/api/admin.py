"""Routes for probes and load balancers. They ask nothing of the workers, so they always answer."""

import importlib.metadata
import shutil
from pathlib import Path

from flask import Blueprint, Response

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.readiness import Readiness, readiness
from forgellm.errors import ShuttingDown, SupervisorUnavailable

blueprint = Blueprint("admin", __name__)

_VERSION = importlib.metadata.version("forgellm")  # read now: later there may be no descriptor to read it with
FULL_BYTES = 1 << 20  # a disk with less free takes no log worth the name
ANSWER_TIMEOUT_S = 2.0  # of the supervisor's thread, which has nothing to wait for


@blueprint.get("/")
def root() -> Response:
    """Says that this is the server: clients of Ollama look here whether there is one."""
    return Response("ForgeLLM is running", mimetype="text/plain")


@blueprint.get("/api/health")
@blueprint.get("/healthz")
def health() -> Response:
    """`ok` while the server takes requests, 503 while it stops; `degraded` if it goes on without logs and journal."""
    ctx = context()
    if ctx.gate.is_draining:
        return json_response({"status": "stopping", "version": _VERSION}, 503)
    folders = {"logs": ctx.settings.log_path, "cache": ctx.settings.cache_path}
    full = [f"the disk of its {what} is full" for what, folder in folders.items() if _is_full(folder)]
    if full:
        return json_response({"status": "degraded", "version": _VERSION, "reasons": full})
    return json_response({"status": "ok", "version": _VERSION})


@blueprint.get("/readyz")
def ready() -> Response:
    """Whether the pool serves: `ok`, `degraded`, or 503 and `not_ready`, with the reasons."""
    found = _readiness()
    return json_response({"status": found.word, "reasons": found.reasons}, 200 if found.is_ready else 503)


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:  # it is not there yet
        return False


def _readiness() -> Readiness:
    ctx = context()
    if ctx.gate.is_draining:
        return Readiness(is_ready=False, reasons=("it is shutting down",))
    try:
        counts = ctx.pool.counts(timeout_s=ANSWER_TIMEOUT_S)
    except (ShuttingDown, SupervisorUnavailable) as error:
        return Readiness(is_ready=False, reasons=(error.message,))
    return readiness(ctx.pool.status(), counts, ctx.settings.readiness_timeout_s)
