"""POST /v1/responses: pieces of a generation to output items and the events that build them. Decides nothing."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from flask import Response

from forgellm import messages
from forgellm.api import answers, sse
from forgellm.api.answers import Answers
from forgellm.api.dialect import read
from forgellm.api.errors import Problem, json_response
from forgellm.api.openai import wire
from forgellm.api.schemas import openai_answers as out
from forgellm.api.schemas.openai_responses import ResponseBody
from forgellm.messages import Reasoning, TokenLogprobs
from forgellm.supervisor.generation import Generation, Token

Event = dict[str, Any]


def responses() -> Response:
    """Answer the input, whole or as a stream of events."""
    body = read(ResponseBody)
    running = answers.begin(body.to_requests(), body.names)
    response = _started(body, running.generations[0])
    output = Output(response, body.namespaced)
    if body.stream:
        numbers = Numbers()
        return answers.stream(
            running,
            _frames(running, response, output, numbers),
            mimetype=sse.MIMETYPE,
            failure=lambda problem: failed(problem, response, output, numbers),
            ping=sse.PING,
        )
    for _, token in running.pieces():
        if token is not None:
            for _event in output.add(token):
                pass  # the events of a stream: the items they build are what is wanted here
    generation = running.generations[0]
    _end(response, output, generation, answers.finish_reason(generation))
    return json_response(response)


class Numbers:
    """Numbers the events of one stream, from 0."""

    def __init__(self) -> None:
        self._next = 0

    @property
    def is_first(self) -> bool:
        return self._next == 0

    def frame(self, event: Event) -> bytes:
        number = self._next
        self._next += 1
        return sse.frame({**event, "sequence_number": number}, event["type"])


def _frames(running: Answers, response: out.Response, output: "Output", numbers: Numbers) -> Iterator[bytes]:
    for batch in running.batches():
        tokens = [token for _, token in batch if token is not None]
        opening = _opening(response, numbers) if tokens else b""
        yield opening + b"".join(numbers.frame(event) for token in tokens for event in output.add(token))
    generation = running.generations[0]
    reason = answers.finish_reason(generation)  # or it raises, and nothing more is said but failed()
    opening = _opening(response, numbers)
    closing = b"".join(map(numbers.frame, _end(response, output, generation, reason)))
    yield opening + closing + numbers.frame({"type": f"response.{response.status}", "response": response})


def _opening(response: out.Response, numbers: Numbers) -> bytes:
    """What a stream begins with, if it has not begun."""
    words = ("created", "in_progress") if numbers.is_first else ()
    return b"".join(numbers.frame({"type": f"response.{word}", "response": response}) for word in words)


def failed(problem: Problem, response: out.Response, output: "Output", numbers: Numbers) -> bytes:
    """How a stream that broke ends: the response that failed, which Codex looks for, then the error."""
    opening = _opening(response, numbers)
    for _event in output.end("incomplete") if output.items else ():
        pass  # its item is left as it is: nobody is told that it is done
    response.status, response.error = "failed", {"code": problem.code, "message": problem.message}
    end = numbers.frame({"type": "response.failed", "response": response})
    error = {"type": "error", "code": problem.code, "message": problem.message, "param": problem.field}
    return opening + end + numbers.frame(error)


def _started(body: ResponseBody, generation: Generation) -> out.Response:
    choice = body.tool_choice or "auto"
    return out.Response(
        id=generation.request_id,
        created_at=wire.now(),
        model=generation.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        parallel_tool_calls=body.parallel_tool_calls,
        temperature=body.temperature,
        top_p=body.top_p,
        top_logprobs=body.top_logprobs or 0,
        text=msgspec.to_builtins(body.text),
        tools=[msgspec.to_builtins(tool) for tool in body.offered],
        tool_choice=choice if isinstance(choice, str) else msgspec.to_builtins(choice),
        reasoning={"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        metadata=body.metadata,
    )


def _end(response: out.Response, output: "Output", generation: Generation, reason: str) -> list[Event]:
    """Fill in what is known at the end; the events that close the last item."""
    status = "incomplete" if reason == "length" else "completed"
    closing = list(output.end(status))
    response.status = status
    if status == "incomplete":
        response.incomplete_details = {"reason": "max_output_tokens"}
    cost = generation.usage or messages.Usage(prompt_tokens=0, completion_tokens=0)
    response.usage = out.ResponseUsage(
        input_tokens=cost.prompt_tokens,
        input_tokens_details=out.PromptDetails(cached_tokens=cost.cached_tokens),
        output_tokens=cost.completion_tokens,
        output_tokens_details=out.OutputDetails(reasoning_tokens=output.reasoning_tokens),
        total_tokens=cost.prompt_tokens + cost.completion_tokens,
    )
    return closing


class Output:
    """The items of an answer, built token by token; every step gives the events that tell a client of it.

    One item is open at a time: text after reasoning ends the reasoning, a call ends the text.
    """

    def __init__(
        self, response: out.Response, namespaced: Mapping[str, tuple[str, str]] = MappingProxyType({})
    ) -> None:
        """`namespaced`: see ResponseBody."""
        self.items = response.output
        self._namespaced = namespaced
        self._tail = response.id.partition("-")[2]  # makes ids of items that no other response has
        self.reasoning_tokens = 0
        self._kind: str | None = None  # of the open item
        self._call: int | None = None  # its number among the calls, if it is one

    def add(self, token: Token) -> Iterator[Event]:
        reasoning = [part.text for part in token.parts or () if isinstance(part, Reasoning)]
        if reasoning:
            self.reasoning_tokens += len(token.token_ids)
            yield from self._open("reasoning")
            yield self._grown("reasoning_text", "".join(reasoning))
        if token.text:
            yield from self._open("message")
            yield self._grown("output_text", token.text, token.logprobs)
        for part in token.parts or ():
            if isinstance(part, messages.ToolCall):
                yield from self._called(part)

    def end(self, status: str) -> Iterator[Event]:
        """Close what is open; an answer without any item gets an empty message."""
        if not self.items:
            yield from self._open("message")
        yield from self._close(status)

    @property
    def _item(self) -> dict[str, Any]:
        return self.items[-1]

    def _at(self, kind: str, **more: Any) -> Event:
        where: Event = {"type": f"response.{kind}", "item_id": self._item["id"], "output_index": len(self.items) - 1}
        if self._kind != "function_call":
            where["content_index"] = 0
        return where | more

    def _open(self, kind: str) -> Iterator[Event]:
        if self._kind == kind and kind != "function_call":
            return
        yield from self._close("completed")
        self._kind = kind
        number = len(self.items)
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"id": f"msg_{self._tail}_{number}", "role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"id": f"rs_{self._tail}_{number}", "summary": [], "content": []}
        else:
            item |= {"id": f"fc_{self._tail}_{number}", "call_id": "", "name": "", "arguments": ""}
        self.items.append(item)
        if kind == "function_call":
            return  # announced when its name has come
        yield {"type": "response.output_item.added", "output_index": number, "item": {**item, "content": []}}
        part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"].append(part)
        yield self._at("content_part.added", part=dict(part))

    def _grown(self, kind: str, text: str, logprobs: tuple[TokenLogprobs, ...] | None = None) -> Event:
        part = self._item["content"][0]
        part["text"] += text
        if kind == "reasoning_text":
            return self._at("reasoning_text.delta", delta=text)
        found = wire.chat_logprobs(logprobs or ()).content
        part["logprobs"] += found
        return self._at("output_text.delta", delta=text, logprobs=found)

    def _called(self, part: messages.ToolCall) -> Iterator[Event]:
        if self._kind != "function_call" or self._call != part.index:
            yield from self._open("function_call")
            self._call = part.index
            namespace, name = self._namespaced.get(part.name or "", (None, part.name))
            self._item.update(call_id=part.call_id, name=name)
            if namespace is not None:
                self._item["namespace"] = namespace
            number = len(self.items) - 1
            yield {"type": "response.output_item.added", "output_index": number, "item": dict(self._item)}
        if part.arguments:
            self._item["arguments"] += part.arguments
            yield self._at("function_call_arguments.delta", delta=part.arguments)

    def _close(self, status: str) -> Iterator[Event]:
        if self._kind is None:
            return
        item = self._item
        item["status"] = status
        if self._kind == "function_call":
            yield self._at("function_call_arguments.done", arguments=item["arguments"], name=item["name"])
        else:
            part = item["content"][0]
            extra = {"logprobs": part["logprobs"]} if self._kind == "message" else {}
            kind = "output_text.done" if self._kind == "message" else "reasoning_text.done"
            yield self._at(kind, text=part["text"], **extra)
            yield self._at("content_part.done", part=part)
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
        self._kind = self._call = None
