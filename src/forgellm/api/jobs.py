"""The routes that fetch models from the hub and remove them. They pass on what was asked; the daemon's jobs do it."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response

from forgellm.api.context import context
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.schemas.jobs import PullBody
from forgellm.catalog import Job

blueprint = Blueprint("jobs", __name__, url_prefix="/api")


@blueprint.post("/models/pull")
def pull() -> Response:
    """Begin to fetch a model; answers with the job at once."""
    body = read(PullBody)
    return json_response({"success": True, "job": job_body(context().pool.downloads.pull(body.model, body.revision))})


@blueprint.get("/jobs")
def jobs() -> Response:
    """The jobs that are known, the oldest first."""
    return json_response({"success": True, "jobs": [job_body(each) for each in context().pool.downloads.jobs()]})


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    """How far a job is."""
    return json_response({"success": True, "job": job_body(context().pool.downloads.job(job_id))})


@blueprint.delete("/jobs/<job_id>")
def cancel(job_id: str) -> Response:
    """End a job; answers when its process is gone."""
    return json_response({"success": True, "job": job_body(context().pool.downloads.cancel(job_id))})


@blueprint.delete("/models/<path:model>")
def remove(model: str) -> Response:
    """Remove a repository from the Hugging Face cache."""
    removed = context().pool.downloads.remove(model)
    message = f"Model {removed.model} removed"
    return json_response(
        {"success": True, "message": message, "model_name": removed.model, "freed_bytes": removed.freed_bytes}
    )


def job_body(job: Job) -> dict[str, Any]:
    """A job as JSON: its fields."""
    return asdict(job)
