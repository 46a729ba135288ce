"""POST /v1/embeddings: the vectors of a generation to OpenAI's list. Decides nothing."""

import base64
import struct

from flask import Response

from forgellm.api import answers
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.schemas import openai_answers as out
from forgellm.api.schemas.openai_texts import EmbeddingBody
from forgellm.messages import Embedding


def embeddings() -> Response:
    """A vector for each input, in their order."""
    body = read(EmbeddingBody)
    running = answers.begin(body.to_requests(), {"inputs": "input"})
    parts = [part for _, token in running.pieces() if token is not None for part in token.parts or ()]
    vectors = sorted((part for part in parts if isinstance(part, Embedding)), key=lambda part: part.index)
    tokens = sum(usage.prompt_tokens for usage in running.usages)
    answer = out.Embeddings(
        model=running.generations[0].model,
        data=[
            out.Embedded(index=each.index, embedding=_encoded(each.vector, body.encoding_format)) for each in vectors
        ],
        usage=out.EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return json_response(answer)


def _encoded(vector: bytes, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector).decode("ascii")
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
