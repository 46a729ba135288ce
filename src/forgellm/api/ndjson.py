"""The lines of `/api/model/generate`, and the counts of its answers. Knows no requests and no status codes."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from forgellm.api.answers import Answers, Piece
from forgellm.api.errors import Problem
from forgellm.messages import Usage
from forgellm.supervisor.generation import Generation

MIMETYPES = ("application/x-ndjson", "text/plain")


def counts(generation: Generation) -> dict[str, Any]:
    """What a finished generation cost; times in seconds, rates in tokens/s.

    `tokens_per_sec` is the pace from the first token to the last one, `prompt_tokens_per_sec` that of the prompt's
    tokens that were not in the prefix cache.
    """
    usage = generation.usage or Usage(prompt_tokens=0, completion_tokens=0)
    total_s = generation.total_s or 0.0
    first_s = generation.time_to_first_token_s
    if usage.completion_tokens > 1 and usage.decode_s > 0:
        rate = (usage.completion_tokens - 1) / usage.decode_s
    else:
        rate = usage.completion_tokens / total_s if total_s else 0.0
    fresh = usage.prompt_tokens - usage.cached_tokens
    return {
        "generation_time": total_s,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "tokens_per_sec": round(rate, 3),
        "finish_reason": generation.finish_reason,
        "time_to_first_token": total_s if first_s is None else first_s,
        "prompt_tokens_per_sec": round(fresh / usage.prefill_s, 3) if usage.prefill_s > 0 else 0.0,
        "model_name": generation.model,
    }


def lines(answer: Answers) -> Iterator[bytes]:
    """One write of whole lines per batch, b"" for one without text, then `complete`."""
    for pieces in answer.batches():
        yield _chunks(pieces)
    yield _line({"type": "complete", **counts(answer.generations[0])})


def failure(problem: Problem) -> bytes:
    """The last line of a stream that goes wrong after its first byte."""
    return _line({"type": "error", "code": problem.code, "error": problem.message})


def _chunks(pieces: Sequence[Piece]) -> bytes:
    now = time.time()
    return b"".join(
        _line({"type": "chunk", "text": token.text, "timestamp": now}) for _, token in pieces if token and token.text
    )


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"
