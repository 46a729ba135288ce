"""POST /v1/completions: pieces of generations to a text completion or its chunks. Decides nothing."""

from collections.abc import Iterator

from flask import Response
from msgspec import UNSET

from forgellm.api import answers, sse
from forgellm.api.answers import Answers, Piece
from forgellm.api.dialect import read
from forgellm.api.errors import json_response
from forgellm.api.openai import wire
from forgellm.api.openai.wire import Said
from forgellm.api.schemas import openai_answers as out
from forgellm.api.schemas.openai_texts import CompletionBody


def completions() -> Response:
    """Continue each prompt, whole or as a stream."""
    body = read(CompletionBody)
    running = answers.begin(body.to_requests(), body.names)
    if body.stream:
        frames = _frames(running, body)
        return answers.stream(running, frames, mimetype=sse.MIMETYPE, failure=wire.error_event, ping=sse.PING)
    said = [Said() for _ in running.generations]
    for index, token in running.pieces():
        if token is not None:
            said[index].add(token)
    completion = _completion(running)
    for index, each in enumerate(said):
        reason = answers.finish_reason(running.generations[index])
        logprobs = None if body.logprobs is None else wire.text_logprobs(each.logprobs, 0)
        text = body.echoed(index) + each.text
        completion.choices.append(out.TextChoice(index=index, text=text, finish_reason=reason, logprobs=logprobs))
    completion.usage = wire.usage(running.usages, body.n)
    return json_response(completion)


def _completion(running: Answers) -> out.Completion:
    first = running.generations[0]
    return out.Completion(
        id=first.request_id,
        created=wire.now(),
        model=first.model,
        system_fingerprint=wire.fingerprint(),
        choices=[],
    )


def _frames(running: Answers, body: CompletionBody) -> Iterator[bytes]:
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    chunk = _completion(running)
    chunk.usage = None if with_usage else UNSET
    sent = dict.fromkeys(range(len(running.generations)), 0)  # characters of tokens, by choice: where the next begins
    echoed = {index: body.echoed(index) for index in sent}
    for batch in running.batches():
        frames = b""
        for choice in _choices(batch, running, body, sent, echoed):
            chunk.choices = [choice]
            frames += sse.frame(chunk)
        yield frames
    if with_usage:
        chunk.choices, chunk.usage = [], wire.usage(running.usages, body.n)
        yield sse.frame(chunk)
    yield wire.DONE


def _choices(
    batch: list[Piece], running: Answers, body: CompletionBody, sent: dict[int, int], echoed: dict[int, str]
) -> Iterator[out.TextChoice]:
    said: dict[int, Said] = {}
    for index, token in batch:
        each = said.setdefault(index, Said())
        if token is not None:
            each.add(token)
    ended = {index for index, token in batch if token is None}
    for index, each in sorted(said.items()):
        text = echoed.pop(index, "") + each.text
        logprobs = None
        if body.logprobs is not None:
            logprobs = wire.text_logprobs(each.logprobs, sent[index])
            sent[index] += sum(map(len, logprobs.tokens))
        reason = answers.finish_reason(running.generations[index]) if index in ended else None
        if text or each.logprobs or reason:
            yield out.TextChoice(index=index, text=text, finish_reason=reason, logprobs=logprobs)
