"""What the encoders of the OpenAI routes share: errors, counts, log probabilities, what was said so far. Pure."""

import functools
import hashlib
import importlib.metadata
import time
from collections.abc import Iterable, Sequence
from typing import Any

from forgellm import messages
from forgellm.api import sse
from forgellm.api.errors import Problem
from forgellm.api.schemas import openai_answers as out
from forgellm.messages import Reasoning, TokenLogprobs
from forgellm.supervisor.generation import Token

DONE = b"data: [DONE]\n\n"

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(problem: Problem) -> dict[str, Any]:
    """OpenAI's envelope, with the codes of this server."""
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.field, "code": problem.code}}


def error_event(problem: Problem) -> bytes:
    """The last event of a stream that went wrong."""
    return sse.frame(error_body(problem))


@functools.cache
def fingerprint() -> str:
    """Changes when the programs do that turn the same request and seed into text."""
    names = ("forgellm", "mlx", "mlx-lm")
    versions = " ".join(f"{name}={importlib.metadata.version(name)}" for name in names)
    return f"fp_{hashlib.sha256(versions.encode()).hexdigest()[:12]}"


def now() -> int:
    """Unix time, for `created`; nothing is decided by it."""
    return int(time.time())


def usage(costs: Sequence[messages.Usage], choices: int = 1) -> out.Usage:
    """The sum of what the generations cost; of each prompt that has `choices` of them, once."""
    prompts = costs[::choices]
    prompt_tokens = sum(each.prompt_tokens for each in prompts)
    completion_tokens = sum(each.completion_tokens for each in costs)
    return out.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=out.PromptDetails(cached_tokens=sum(each.cached_tokens for each in prompts)),
    )


class Said:
    """What tokens said, joined: of a whole answer, or of one event of a stream."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.logprobs: list[TokenLogprobs] = []
        self.calls: dict[int, out.ToolCall] = {}

    def add(self, token: Token) -> None:
        self.text += token.text
        if token.logprobs:
            self.logprobs += token.logprobs
        for part in token.parts or ():
            if isinstance(part, Reasoning):
                self.reasoning += part.text
            elif isinstance(part, messages.ToolCall):
                self._call(part)

    def _call(self, part: messages.ToolCall) -> None:
        call = self.calls.get(part.index)
        if call is None:
            call = self.calls[part.index] = out.ToolCall(function=out.CalledFunction(arguments=""), index=part.index)
        call.function.arguments += part.arguments
        if part.call_id is not None:
            call.id, call.type = part.call_id, "function"
        if part.name is not None:
            call.function.name = part.name

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.logprobs or self.calls)


def chat_logprobs(found: Iterable[TokenLogprobs]) -> out.ChatLogprobs:
    """Log probabilities in the form of the chat route."""
    content = [
        out.TokenLogprob(
            token=text,
            logprob=logprob,
            bytes=list(text.encode("utf-8", "replace")),
            top_logprobs=[
                out.TopLogprob(token=other, logprob=value, bytes=list(other.encode("utf-8", "replace")))
                for _, other, value in likeliest
            ],
        )
        for _, text, logprob, likeliest in found
    ]
    return out.ChatLogprobs(content=content)


def text_logprobs(found: Iterable[TokenLogprobs], offset: int) -> out.TextLogprobs:
    """Log probabilities in the form of the completions route; the first token begins at `offset` of the text."""
    made = out.TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for _, text, logprob, likeliest in found:
        made.tokens.append(text)
        made.token_logprobs.append(logprob)
        made.top_logprobs.append({other: value for _, other, value in reversed(likeliest)})  # of one text, the likelier
        made.text_offset.append(offset)
        offset += len(text)
    return made
