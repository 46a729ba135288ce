"""The Anthropic dialect: messages, whole or as events, and counts of tokens. Each view decodes, submits and encodes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from forgellm import messages as inner
from forgellm.api import answers, sse
from forgellm.api.answers import Answers
from forgellm.api.dialect import Dialect, Operation, read
from forgellm.api.errors import Problem, json_response
from forgellm.api.schemas import anthropic_answers as out
from forgellm.api.schemas.anthropic import CountBody, MessagesBody
from forgellm.errors import ContextLengthExceeded, InvalidRequest
from forgellm.messages import Reasoning, Stopped
from forgellm.supervisor.generation import Generation, Token

blueprint = Blueprint("anthropic", __name__, url_prefix="/v1/messages")

VERSIONS = ("2023-06-01", "2026-10-21")
"""Both stream alike. Since the second, Anthropic takes no `temperature`, `top_p` and `top_k`. This server does,
for its models are tuned to no setting, and clients can still send them as further fields."""

PING = sse.frame({"type": "ping"}, "ping")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
Event = dict[str, Any]


@blueprint.post("")
def messages() -> Response:
    """Answer the last message, whole or as a stream."""
    _check_version()
    body = read(MessagesBody)
    running = answers.begin(body.to_requests(), body.names)
    blocks = Blocks(shows_thinking=body.shows_thinking)
    if body.stream:
        frames = _frames(running, blocks, body)
        return answers.stream(running, frames, mimetype=sse.MIMETYPE, failure=_error_event, ping=sse.PING)
    for _, token in running.pieces():
        if token is not None:
            for _event in blocks.add(token):
                pass  # the events of a stream: the blocks they build are what is wanted here
    for _event in blocks.end():
        pass
    generation = running.generations[0]
    message = _started(generation)
    message.content = blocks.content
    message.stop_reason, message.stop_sequence = _stop_reason(generation, blocks, body), blocks.stop_sequence
    message.usage = _usage(generation)
    return json_response(message)


@blueprint.post("/count_tokens")
def count_tokens() -> Response:
    """How long the prompt would be. Nothing is read by the model: its worker's tokenizer counts."""
    _check_version()
    body = read(CountBody)
    running = answers.begin(body.to_requests(), body.names)
    for _ in running.pieces():
        pass
    answers.finish_reason(running.generations[0])
    return json_response(out.TokenCount(input_tokens=sum(each.prompt_tokens for each in running.usages)))


def _check_version() -> None:
    """Clients send the version they were written for, if any."""
    given = request.headers.get("anthropic-version")
    if given is not None and given not in VERSIONS:
        known = " or ".join(VERSIONS)
        raise InvalidRequest(f"the header anthropic-version must be {known}, not {given}", field="anthropic-version")


def _error_body(problem: Problem) -> dict[str, Any]:
    """Anthropic's envelope, with the codes of this server."""
    kind = _TYPES.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    is_long = problem.code == ContextLengthExceeded.code
    message = f"prompt is too long: {problem.message}" if is_long else problem.message  # what agents look for
    detail: dict[str, Any] = {"type": kind, "message": message, "code": problem.code}
    if problem.field is not None:
        detail["param"] = problem.field
    return {"type": "error", "error": detail}


def _error_event(problem: Problem) -> bytes:
    return sse.frame(_error_body(problem), "error")


def _started(generation: Generation) -> out.Message:
    """The message before its first token: the prompt has been read, and its length is known."""
    usage = out.Usage(input_tokens=generation.prefill[1], output_tokens=0)
    return out.Message(
        id=generation.request_id, model=generation.model, content=[], stop_reason=None, stop_sequence=None, usage=usage
    )


def _usage(generation: Generation) -> out.Usage:
    cost = generation.usage or inner.Usage(prompt_tokens=0, completion_tokens=0)
    return out.Usage(
        input_tokens=cost.prompt_tokens - cost.cached_tokens,
        output_tokens=cost.completion_tokens,
        cache_read_input_tokens=cost.cached_tokens,
    )


def _stop_reason(generation: Generation, blocks: "Blocks", body: MessagesBody) -> out.StopReason:
    """Why it ended, in Anthropic's words."""
    reason = answers.finish_reason(generation)
    if reason == "tool_calls":
        return "tool_use"
    if reason == "stop":
        return "end_turn" if blocks.stop_sequence is None else "stop_sequence"
    produced = generation.usage.completion_tokens if generation.usage is not None else 0
    return "max_tokens" if produced >= body.max_tokens else "model_context_window_exceeded"


def _frames(running: Answers, blocks: "Blocks", body: MessagesBody) -> Iterator[bytes]:
    """The events. `ping` is one of them, so before `message_start`, which is the first, a quiet stream has none."""
    generation = running.generations[0]
    is_open = False
    for batch in running.batches():
        frames = b"".join(_frame(event) for _, token in batch if token is not None for event in blocks.add(token))
        if frames and not is_open:
            is_open, frames = True, _frame({"type": "message_start", "message": _started(generation)}) + frames
        yield frames or (PING if is_open else b"")
    reason = _stop_reason(generation, blocks, body)
    opening = b"" if is_open else _frame({"type": "message_start", "message": _started(generation)})
    delta = {"stop_reason": reason, "stop_sequence": blocks.stop_sequence}
    closing = [*blocks.end(), {"type": "message_delta", "delta": delta, "usage": _usage(generation)}]
    yield opening + b"".join(map(_frame, closing)) + _frame({"type": "message_stop"})


def _frame(event: Event) -> bytes:
    return sse.frame(event, event["type"])


class Blocks:
    """The blocks of an answer, built token by token; every step gives the events that tell a client of it.

    One block is open at a time: text after thinking ends the thinking, a call ends the text.
    """

    def __init__(self, *, shows_thinking: bool = True) -> None:
        self.content: list[dict[str, Any]] = []
        self._shows_thinking = shows_thinking  # else its block stays empty
        self.stop_sequence: str | None = None
        self._kind: str | None = None  # of the open block
        self._call: int | None = None  # its number among the calls, if it is one
        self._arguments = ""

    def add(self, token: Token) -> Iterator[Event]:
        for part in token.parts or ():
            if isinstance(part, Reasoning):
                yield from self._grow("thinking", "thinking", part.text if self._shows_thinking else "", signature="")
        if token.text:
            yield from self._grow("text", "text", token.text)
        for part in token.parts or ():
            if isinstance(part, inner.ToolCall):
                yield from self._called(part)
            elif isinstance(part, Stopped):
                self.stop_sequence = part.stop

    def end(self) -> Iterator[Event]:
        """Close what is open."""
        if self._kind is None:
            return
        if self._kind == "tool_use":
            with contextlib.suppress(msgspec.DecodeError):  # a call that was cut by max_tokens keeps an empty input
                self.content[-1]["input"] = msgspec.json.decode(self._arguments or "{}")
        self._kind = self._call = None
        yield {"type": "content_block_stop", "index": len(self.content) - 1}

    def _grow(self, kind: str, name: str, text: str, **more: str) -> Iterator[Event]:
        if self._kind != kind:
            yield from self._open(kind, {name: "", **more})
        if text:
            self.content[-1][name] += text
            yield self._delta({"type": f"{kind}_delta", name: text})

    def _called(self, part: inner.ToolCall) -> Iterator[Event]:
        if self._call != part.index:
            yield from self._open("tool_use", {"id": part.call_id, "name": part.name, "input": {}})
            self._call, self._arguments = part.index, ""
        if part.arguments:
            self._arguments += part.arguments
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _open(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        yield from self.end()
        self._kind = kind
        self.content.append({"type": kind, **fields})
        block = {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(self.content[-1])}
        yield block

    def _delta(self, delta: dict[str, str]) -> Event:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}


DIALECT = Dialect(
    name="anthropic",
    blueprint=blueprint,
    paths=("/v1/messages",),
    error_body=_error_body,
    error=out.AnthropicError,
    operations=(
        Operation(
            method="post",
            path="/v1/messages",
            says="Answer a conversation, as blocks.",
            body=MessagesBody,
            answer=out.Message,
            event=out.MessageEvent,
        ),
        Operation(
            method="post",
            path="/v1/messages/count_tokens",
            says="How many tokens a prompt has.",
            body=CountBody,
            answer=out.TokenCount,
        ),
    ),
)
