"""The OpenAI dialect: its routes and what they are. Each view decodes, submits and encodes; it decides nothing."""

from flask import Blueprint

from forgellm.api.dialect import Dialect, Operation
from forgellm.api.openai import chat, completions, embeddings, models, responses, wire
from forgellm.api.schemas import openai_answers as out
from forgellm.api.schemas.openai_chat import ChatBody
from forgellm.api.schemas.openai_responses import ResponseBody
from forgellm.api.schemas.openai_texts import CompletionBody, EmbeddingBody

blueprint = Blueprint("openai", __name__, url_prefix="/v1")
blueprint.get("/models")(models.models)
blueprint.get("/models/<path:model>")(models.model)
blueprint.post("/chat/completions")(chat.chat)
blueprint.post("/completions")(completions.completions)
blueprint.post("/responses")(responses.responses)
blueprint.post("/embeddings")(embeddings.embeddings)

DIALECT = Dialect(
    name="openai",
    blueprint=blueprint,
    paths=("/v1",),
    error_body=wire.error_body,
    error=out.Error,
    operations=(
        Operation(method="get", path="/v1/models", says="What can be asked for.", answer=out.Models),
        Operation(method="get", path="/v1/models/{model}", says="One model.", answer=out.Model, statuses=(404,)),
        Operation(
            method="post",
            path="/v1/chat/completions",
            says="Answer a conversation.",
            body=ChatBody,
            answer=out.ChatCompletion,
            event=out.ChatChunk,
        ),
        Operation(
            method="post",
            path="/v1/completions",
            says="Continue a text.",
            body=CompletionBody,
            answer=out.Completion,
            event=out.Completion,
        ),
        Operation(
            method="post",
            path="/v1/responses",
            says="Answer a conversation, as items.",
            body=ResponseBody,
            answer=out.Response,
            event=out.ResponseEvent,
        ),
        Operation(
            method="post",
            path="/v1/embeddings",
            says="Turn texts into vectors.",
            body=EmbeddingBody,
            answer=out.Embeddings,
        ),
    ),
)
