"""What a response's events and items are, token by token: reasoning, text and calls in any order."""

import copy
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgellm.api.errors import Problem
from forgellm.api.openai.responses import Numbers, Output, failed
from forgellm.api.schemas import openai_answers as out
from forgellm.messages import Reasoning, ToolCall
from forgellm.supervisor.generation import Token

TEXTS = st.text(min_size=1, max_size=5)


def begun() -> out.Response:
    return out.Response(
        **dict.fromkeys(("instructions", "max_output_tokens")),
        **dict.fromkeys(("temperature", "top_p", "top_logprobs", "created_at"), 0),
        text={},
        reasoning={},
        metadata={},
        id="resp-1",
        model="m",
        parallel_tool_calls=True,
        tools=[],
        tool_choice="auto",
    )


def output(namespaced: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> Output:
    return Output(begun(), namespaced)


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, as a client builds them from the events alone."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        at = event["output_index"]
        if kind == "output_item.added":
            assert at == len(items)
            items.append(copy.deepcopy(event["item"]))
        elif kind == "content_part.added":
            items[at]["content"].append(copy.deepcopy(event["part"]))
        elif kind in {"output_text.delta", "reasoning_text.delta"}:
            items[at]["content"][0]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[at]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            items[at]["status"] = event["item"]["status"]
            assert items[at] == event["item"]
        assert "item_id" not in event or event["item_id"] == items[at]["id"]
    return items


@st.composite
def answers(draw: st.DrawFn) -> list[Token]:
    tokens: list[Token] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(["text", "reasoning", "call", "both", "nothing"]), max_size=8)):
        text = draw(TEXTS)
        if kind == "call":
            tokens.append(Token("", (1,), None, (ToolCall(calls, "", f"id{calls}", "f"),)))
            tokens += [Token("", (1,), None, (ToolCall(calls, piece),)) for piece in ("{", "}")]
            calls += 1
        elif kind == "nothing":
            tokens.append(Token("", (1,)))
        else:
            parts = (Reasoning(text),) if kind in {"reasoning", "both"} else None
            tokens.append(Token(text if kind in {"text", "both"} else "", (1,), None, parts))
    return tokens


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # both measure the machine
@given(answers())
def test_events_alone_build_the_items_and_lose_nothing(tokens: list[Token]) -> None:
    made = output()
    events = [copy.deepcopy(event) for token in tokens for event in made.add(token)]
    events += made.end("completed")
    assert rebuilt(events) == made.items
    assert {item["status"] for item in made.items} == {"completed"}

    def joined(kind: str) -> str:
        return "".join(item["content"][0]["text"] for item in made.items if item["type"] == kind)

    assert joined("message") == "".join(token.text for token in tokens)
    assert joined("reasoning") == "".join(p.text for t in tokens for p in t.parts or () if isinstance(p, Reasoning))
    calls = [item for item in made.items if item["type"] == "function_call"]
    wanted = {part.index for token in tokens for part in token.parts or () if isinstance(part, ToolCall)}
    assert [call["call_id"] for call in calls] == [f"id{index}" for index in sorted(wanted)]
    assert {call["arguments"] for call in calls} <= {"{}"}


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    made = output()
    first, *_ = made.end("completed")
    assert first["type"] == "response.output_item.added"
    assert made.items[0]["content"][0]["text"] == ""


def test_a_response_that_fails_before_its_first_token_was_created_all_the_same() -> None:
    """A client's library wants to know of a response before it hears how it ended."""
    response = begun()
    frames = failed(Problem(500, "generation_failed", "no"), response, Output(response), Numbers())
    found = [json.loads(line.removeprefix("data: ")) for line in frames.decode().splitlines() if line[:5] == "data:"]
    names = [event["type"] for event in found]
    assert names == ["response.created", "response.in_progress", "response.failed", "error"]
    assert [event["response"]["status"] for event in found[:3]] == ["in_progress", "in_progress", "failed"]
    assert found[2]["response"]["error"] == {"code": "generation_failed", "message": "no"}
    assert found[2]["response"]["output"] == []


def test_a_call_of_a_function_in_a_namespace_comes_back_with_the_two_apart():
    made = output({"multi_agent_v1__close_agent": ("multi_agent_v1", "close_agent")})
    call = ToolCall(0, '{"target": "a"}', "call_1", "multi_agent_v1__close_agent")
    events = [*made.add(Token("", parts=(call,))), *made.end("completed")]
    done = events[-1]["item"]
    assert (done["namespace"], done["name"], done["arguments"]) == ("multi_agent_v1", "close_agent", '{"target": "a"}')
