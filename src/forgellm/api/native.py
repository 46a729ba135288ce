"""ForgeLLM's own routes, described like those of any dialect. Data only: model.py, catalog.py, admin.py serve them."""

from forgellm.api import model, ndjson
from forgellm.api.dialect import Dialect, Operation
from forgellm.api.errors import error_body
from forgellm.api.schemas import GenerateBody, LoadBody, PlanBody, UnloadBody
from forgellm.api.schemas.jobs import PullBody
from forgellm.api.schemas.native import Error, Happened, Line
from forgellm.api.schemas.operations import DrainBody, ReloadBody

_LISTS = ("models", "base_models", "cpt_models", "ift_models")

DIALECT = Dialect(
    name="forgellm",
    blueprint=model.blueprint,
    paths=("/api",),
    error_body=error_body,
    error=Error,
    operations=(
        Operation(method="post", path="/api/model/load", says="Load a model.", body=LoadBody),
        Operation(method="post", path="/api/model/plan", says="What a load would need and evict.", body=PlanBody),
        Operation(method="get", path="/api/model/status", says="What state everything is in.", query=("model",)),
        Operation(method="get", path="/api/model/info", says="What a loaded model is.", query=("model",)),
        Operation(
            method="post", path="/api/model/unload", says="Unload a model.", body=UnloadBody, is_body_optional=True
        ),
        Operation(
            method="post",
            path="/api/model/generate",
            says="Answer a prompt.",
            body=GenerateBody,
            event=Line,
            stream_types=ndjson.MIMETYPES,
        ),
        *(Operation(method="get", path=f"/api/{name}", says="What could be loaded.") for name in _LISTS),
        Operation(method="get", path="/api/checkpoints", says="Adapters that were trained.", query=("model_dir",)),
        Operation(
            method="post",
            path="/api/admin/drain",
            says="Finish what runs, take nothing new.",
            body=DrainBody,
            is_body_optional=True,
        ),
        Operation(
            method="post",
            path="/api/models/pull",
            says="Begin to fetch a model from the Hugging Face Hub.",
            body=PullBody,
        ),
        Operation(
            method="delete",
            path="/api/models/{model}",
            says="Remove a model from the hub's cache.",
            statuses=(409,),
        ),
        Operation(method="get", path="/api/jobs", says="The pulls, running and ended."),
        Operation(method="get", path="/api/jobs/{job_id}", says="How far a pull is."),
        Operation(method="delete", path="/api/jobs/{job_id}", says="Cancel a pull."),
        Operation(
            method="get", path="/api/events", says="What happens to models and workers, as it happens.", event=Happened
        ),
        Operation(
            method="post",
            path="/api/admin/reload",
            says="Read the settings again and go by them.",
            body=ReloadBody,
            is_body_optional=True,
        ),
        Operation(method="get", path="/api/health", says="Whether the server takes requests."),
    ),
)
