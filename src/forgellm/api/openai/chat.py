"""POST /v1/chat/completions: pieces of generations to a chat completion or its chunks. Decides nothing."""

from collections.abc import Iterator

from flask import Response
from msgspec import UNSET

from forgellm.api import answers, sse
from forgellm.api.answers import Answers
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.openai import wire
from forgellm.api.openai.wire import Said
from forgellm.api.schemas import openai_answers as out
from forgellm.api.schemas.openai_chat import ChatBody


def chat() -> Response:
    """Answer the last message, whole or as a stream."""
    body = read(ChatBody)
    running = answers.begin(body.to_requests(), body.names)
    if body.stream:
        frames = _frames(running, body)
        return answers.stream(running, frames, mimetype=sse.MIMETYPE, failure=wire.error_event, ping=sse.PING)
    said = [Said() for _ in running.generations]
    for index, token in running.pieces():
        if token is not None:
            said[index].add(token)
    first = running.generations[0]
    completion = out.ChatCompletion(
        id=first.request_id,
        created=wire.now(),
        model=first.model,
        system_fingerprint=wire.fingerprint(),
        choices=[
            out.ChatChoice(
                index=index,
                message=_message(each),
                finish_reason=answers.finish_reason(running.generations[index]),
                logprobs=wire.chat_logprobs(each.logprobs) if body.logprobs else None,
            )
            for index, each in enumerate(said)
        ],
        usage=wire.usage(running.usages, body.n),
    )
    return json_response(completion)


def _message(said: Said) -> out.ChatMessage:
    calls = list(said.calls.values())
    for call in calls:
        call.index = UNSET  # a stream's field
    return out.ChatMessage(
        content=said.text or (None if calls else ""),
        reasoning_content=said.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _frames(running: Answers, body: ChatBody) -> Iterator[bytes]:
    first = running.generations[0]
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    chunk = out.ChatChunk(
        id=first.request_id,
        created=wire.now(),
        model=first.model,
        system_fingerprint=wire.fingerprint(),
        choices=[],
        usage=None if with_usage else UNSET,
    )
    started: set[int] = set()
    for batch in running.batches():
        frames = b""
        for choice in _choices(batch, running, body, started):
            chunk.choices = [choice]
            frames += sse.frame(chunk)
        yield frames
    if with_usage:
        chunk.choices, chunk.usage = [], wire.usage(running.usages, body.n)
        yield sse.frame(chunk)
    yield wire.DONE


def _choices(
    batch: list[answers.Piece], running: Answers, body: ChatBody, started: set[int]
) -> Iterator[out.ChunkChoice]:
    """What the batch adds to each choice; its end apart, as clients expect."""
    said: dict[int, Said] = {}
    for index, token in batch:
        if token is not None:
            said.setdefault(index, Said()).add(token)
    ended = [index for index, token in batch if token is None]
    for index in sorted({*said, *ended}):
        if index not in started:
            started.add(index)
            yield out.ChunkChoice(index=index, delta=out.Delta(role="assistant", content=""))
        what = said.get(index)
        if what is not None and not what.is_empty:
            delta = out.Delta(
                content=what.text or UNSET,
                reasoning_content=what.reasoning or UNSET,
                tool_calls=list(what.calls.values()) or UNSET,
            )
            logprobs = wire.chat_logprobs(what.logprobs) if body.logprobs else None
            yield out.ChunkChoice(index=index, delta=delta, logprobs=logprobs)
        if index in ended:
            reason = answers.finish_reason(running.generations[index])
            yield out.ChunkChoice(index=index, delta=out.Delta(), finish_reason=reason)
