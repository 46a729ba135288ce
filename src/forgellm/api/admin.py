"""Health routes, for probes and load balancers. They ask nothing of the workers, so they always answer."""

import importlib.metadata

from flask import Blueprint, Response

from forgellm.api.context import context
from forgellm.api.errors import json_response

blueprint = Blueprint("admin", __name__)


@blueprint.get("/api/health")
@blueprint.get("/healthz")
def health() -> Response:
    """`ok` while the server takes requests, 503 while it stops."""
    is_stopping = context().gate.is_draining
    body = {"status": "stopping" if is_stopping else "ok", "version": importlib.metadata.version("forgellm")}
    return json_response(body, 503 if is_stopping else 200)
