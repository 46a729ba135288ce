"""Routes for probes and load balancers. They ask nothing of the workers, so they always answer."""

import importlib.metadata

from flask import Blueprint, Response

from forgellm.api.context import context
from forgellm.api.errors import json_response
from forgellm.api.readiness import Readiness, readiness
from forgellm.errors import ShuttingDown, SupervisorUnavailable

blueprint = Blueprint("admin", __name__)

_VERSION = importlib.metadata.version("forgellm")  # read now: later there may be no descriptor to read it with
ANSWER_TIMEOUT_S = 2.0  # of the supervisor's thread, which has nothing to wait for


@blueprint.get("/")
def root() -> Response:
    """Says that this is the server: clients of Ollama look here whether there is one."""
    return Response("ForgeLLM is running", mimetype="text/plain")


@blueprint.get("/api/health")
@blueprint.get("/healthz")
def health() -> Response:
    """`ok` while the server takes requests, 503 while it stops."""
    is_stopping = context().gate.is_draining
    body = {"status": "stopping" if is_stopping else "ok", "version": _VERSION}
    return json_response(body, 503 if is_stopping else 200)


@blueprint.get("/readyz")
def ready() -> Response:
    """Whether the pool serves: `ok`, `degraded`, or 503 and `not_ready`, with the reasons."""
    found = _readiness()
    return json_response({"status": found.word, "reasons": found.reasons}, 200 if found.is_ready else 503)


def _readiness() -> Readiness:
    ctx = context()
    if ctx.gate.is_draining:
        return Readiness(is_ready=False, reasons=("it is shutting down",))
    try:
        counts = ctx.pool.counts(timeout_s=ANSWER_TIMEOUT_S)
    except (ShuttingDown, SupervisorUnavailable) as error:
        return Readiness(is_ready=False, reasons=(error.message,))
    return readiness(ctx.pool.status(), counts, ctx.settings.readiness_timeout_s)
