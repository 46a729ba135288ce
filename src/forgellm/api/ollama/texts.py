"""POST /api/chat and /api/generate: pieces of a generation to Ollama's answer or its lines. Decides nothing."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgspec
from flask import Response
from msgspec import UNSET

from forgellm import messages
from forgellm.api import answers
from forgellm.api.answers import Answers
from forgellm.api.context import context
from forgellm.api.dialect import read
from forgellm.api.errors import Problem, error_body, json_response
from forgellm.api.openai.wire import Said, chat_logprobs
from forgellm.api.schemas import ollama_answers as out
from forgellm.api.schemas.ollama import OllamaChatBody, OllamaGenerateBody
from forgellm.supervisor.generation import Generation, Token

MIMETYPE = "application/x-ndjson"

Draw = Callable[[str, Said, list[out.ToolCall]], out.Answer]
"""(model, what was said, the calls that are whole) -> an answer of that, not done yet."""


def chat() -> Response:
    """Answer the last message."""
    return _answer(read(OllamaChatBody), _drawn_chat)


def generate() -> Response:
    """Answer the prompt."""
    return _answer(read(OllamaGenerateBody), _drawn_text)


def now() -> str:
    """The time, as Ollama writes it; nothing is decided by it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _drawn_chat(model: str, said: Said, calls: list[out.ToolCall]) -> out.ChatAnswer:
    message = out.Message(content=said.text, thinking=said.reasoning or UNSET, tool_calls=calls or UNSET)
    return out.ChatAnswer(model=model, created_at=now(), message=message)


def _drawn_text(model: str, said: Said, _: list[out.ToolCall]) -> out.GenerateAnswer:
    return out.GenerateAnswer(model=model, created_at=now(), response=said.text, thinking=said.reasoning or UNSET)


def _answer(body: OllamaChatBody | OllamaGenerateBody, draw: Draw) -> Response:
    if body.is_load:
        return _load(body, draw)
    running = answers.begin(body.to_requests(), body.names)
    if body.stream:
        return answers.stream(running, _lines(running, body, draw), mimetype=MIMETYPE, failure=failure)
    said, calls = Said(), Calls()
    for _, token in running.pieces():
        if token is not None:
            said.add(token)
            calls.add(token)
    answer = draw(body.model, said, calls.take_all())
    if body.logprobs:
        answer.logprobs = chat_logprobs(said.logprobs).content
    return json_response(_finished(answer, running.generations[0]))


def _load(body: OllamaChatBody | OllamaGenerateBody, draw: Draw) -> Response:
    """Load the model, or let it go: a request that generates nothing, under the rules of all requests."""
    goes = body.keep_alive_s == 0
    answer = draw(body.model, Said(), [])
    answer.done, answer.done_reason = True, "unload" if goes else "load"
    if not goes or context().pool.status().model(body.name) is not None:
        running = answers.begin(body.to_requests())
        for _ in running.pieces():
            pass
        answers.finish_reason(running.generations[0])
    if body.stream:
        return Response(_line(answer), mimetype=MIMETYPE)
    return json_response(answer)


def _lines(running: Answers, body: OllamaChatBody | OllamaGenerateBody, draw: Draw) -> Iterator[bytes]:
    calls = Calls()
    for batch in running.batches():
        said = Said()
        for _, token in batch:
            if token is not None:
                said.add(token)
                calls.add(token)
        whole = calls.take_whole()
        if said.text or said.reasoning or whole or (body.logprobs and said.logprobs):
            answer = draw(body.model, said, whole)
            if body.logprobs:
                answer.logprobs = chat_logprobs(said.logprobs).content
            yield _line(answer)
        else:
            yield b""
    generation, rest = running.generations[0], calls.take_all()
    left = _line(draw(body.model, Said(), rest)) if rest else b""
    yield left + _line(_finished(draw(body.model, Said(), []), generation))


def _finished(answer: out.Answer, generation: Generation) -> out.Answer:
    """The answer with what is known at its end."""
    cost = generation.usage or messages.Usage(prompt_tokens=0, completion_tokens=0)
    total_s = generation.total_s or 0.0
    first_s = generation.time_to_first_token_s
    reason = answers.finish_reason(generation)
    answer.done, answer.done_reason = True, "stop" if reason == "tool_calls" else reason
    answer.total_duration = nanoseconds(total_s)
    answer.load_duration = nanoseconds((total_s if first_s is None else first_s) - cost.prefill_s)
    answer.prompt_eval_count, answer.prompt_eval_duration = cost.prompt_tokens, nanoseconds(cost.prefill_s)
    answer.eval_count, answer.eval_duration = cost.completion_tokens, nanoseconds(cost.decode_s)
    return answer


def nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def failure(problem: Problem) -> bytes:
    """The last line of a stream that goes wrong after its first byte."""
    return msgspec.json.encode(error_body(problem)) + b"\n"


def _line(answer: out.Answer) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


class Calls:
    """The calls of an answer, which Ollama's clients get whole."""

    def __init__(self) -> None:
        self._ids: dict[int, tuple[str, str]] = {}
        self._arguments: dict[int, str] = {}

    def add(self, token: Token) -> None:
        for part in token.parts or ():
            if isinstance(part, messages.ToolCall):
                if part.index not in self._ids:
                    self._ids[part.index] = (part.call_id or "", part.name or "")
                self._arguments[part.index] = self._arguments.get(part.index, "") + part.arguments

    def take_whole(self) -> list[out.ToolCall]:
        """Those after which another one has begun."""
        return self._take(len(self._ids) - 1)

    def take_all(self) -> list[out.ToolCall]:
        """Those that are left, at the end. One that was cut has no arguments that could be shown: it is left out."""
        return self._take(len(self._ids))

    def _take(self, end: int) -> list[out.ToolCall]:
        found = []
        for index in sorted(index for index in self._arguments if index < end):
            text = self._arguments.pop(index)
            with contextlib.suppress(msgspec.DecodeError):
                call_id, name = self._ids[index]
                arguments = msgspec.json.decode(text or "{}")
                found.append(out.ToolCall(id=call_id, function=out.CalledFunction(name=name, arguments=arguments)))
        return found
