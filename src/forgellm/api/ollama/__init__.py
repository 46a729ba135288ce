"""The Ollama dialect: its routes and what they are. Errors look as those of all of `/api`: `error` is a sentence."""

from flask import Blueprint

from forgellm.api.dialect import Dialect, Operation
from forgellm.api.errors import error_body
from forgellm.api.ollama import downloads, embeddings, models, texts
from forgellm.api.schemas import ollama_answers as out
from forgellm.api.schemas.native import Error
from forgellm.api.schemas.ollama import EmbedBody, EmbeddingsBody, OllamaChatBody, OllamaGenerateBody
from forgellm.api.schemas.ollama_models import OllamaDeleteBody, OllamaPullBody, ShowBody

blueprint = Blueprint("ollama", __name__, url_prefix="/api")
blueprint.post("/chat")(texts.chat)
blueprint.post("/generate")(texts.generate)
blueprint.post("/embed")(embeddings.embed)
blueprint.post("/embeddings")(embeddings.embeddings)
blueprint.get("/tags")(models.tags)
blueprint.get("/ps")(models.ps)
blueprint.post("/show")(models.show)
blueprint.post("/pull")(downloads.pull)
blueprint.delete("/delete")(downloads.delete)
blueprint.get("/version")(models.version)

DIALECT = Dialect(
    name="ollama",
    blueprint=blueprint,
    paths=(),
    error_body=error_body,
    error=Error,
    operations=(
        Operation(
            method="post",
            path="/api/chat",
            says="Answer a conversation.",
            body=OllamaChatBody,
            answer=out.ChatAnswer,
            event=out.ChatAnswer,
            stream_types=(texts.MIMETYPE,),
        ),
        Operation(
            method="post",
            path="/api/generate",
            says="Answer a prompt.",
            body=OllamaGenerateBody,
            answer=out.GenerateAnswer,
            event=out.GenerateAnswer,
            stream_types=(texts.MIMETYPE,),
        ),
        Operation(
            method="post", path="/api/embed", says="Turn texts into vectors.", body=EmbedBody, answer=out.Embedded
        ),
        Operation(
            method="post",
            path="/api/embeddings",
            says="Turn a text into a vector.",
            body=EmbeddingsBody,
            answer=out.OldEmbedded,
        ),
        Operation(method="get", path="/api/tags", says="What can be asked for.", answer=out.Tags),
        Operation(method="get", path="/api/ps", says="What is loaded.", answer=out.Loadeds),
        Operation(method="post", path="/api/show", says="What a model is.", body=ShowBody, answer=out.Shown),
        Operation(
            method="post",
            path="/api/pull",
            says="Fetch a model from the hub.",
            body=OllamaPullBody,
            answer=out.Progress,
            event=out.Progress,
            stream_types=(texts.MIMETYPE,),
            statuses=(502, 507),
        ),
        Operation(
            method="delete",
            path="/api/delete",
            says="Remove a model's files.",
            body=OllamaDeleteBody,
            answer=out.Progress,
            statuses=(409,),
        ),
        Operation(method="get", path="/api/version", says="The version of this server.", answer=out.Version),
    ),
)
