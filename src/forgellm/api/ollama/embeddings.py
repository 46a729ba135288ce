"""POST /api/embed and /api/embeddings: the vectors of a generation as Ollama lists them. Decides nothing."""

import struct

from flask import Response

from forgellm.api import answers
from forgellm.api.answers import Answers
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.ollama.texts import nanoseconds
from forgellm.api.schemas import ollama_answers as out
from forgellm.api.schemas.ollama import EmbedBody, EmbeddingsBody
from forgellm.messages import Embedding


def embed() -> Response:
    """A vector for each input, in their order."""
    body = read(EmbedBody)
    running = answers.begin(body.to_requests(), {"inputs": "input"})
    vectors = _vectors(running)
    total_s = running.generations[0].total_s or 0.0
    computing_s = sum(usage.prefill_s for usage in running.usages)
    answer = out.Embedded(
        model=body.model,
        embeddings=vectors,
        total_duration=nanoseconds(total_s),
        load_duration=nanoseconds(total_s - computing_s),
        prompt_eval_count=sum(usage.prompt_tokens for usage in running.usages),
    )
    return json_response(answer)


def embeddings() -> Response:
    """The vector of one text."""
    body = read(EmbeddingsBody)
    (vector,) = _vectors(answers.begin(body.to_requests(), {"inputs": "prompt", "input": "prompt"}))
    return json_response(out.OldEmbedded(embedding=vector))


def _vectors(running: Answers) -> list[list[float]]:
    parts = [part for _, token in running.pieces() if token is not None for part in token.parts or ()]
    answers.finish_reason(running.generations[0])
    found = sorted((part for part in parts if isinstance(part, Embedding)), key=lambda part: part.index)
    return [list(struct.unpack(f"<{len(each.vector) // 4}f", each.vector)) for each in found]
