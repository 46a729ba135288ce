"""The official anthropic client drives a daemon with the demo model: nothing but the base URL is set."""

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

ASKED: Any = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
    "extra_body": {"temperature": 0},  # the client of today has no name for it; those of before did
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Lyon"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def anthropic() -> Any:
    """The library, which takes its time to be imported: not while the tests of other tiers are collected."""
    return importlib.import_module("anthropic")


@pytest.fixture(scope="module")
def client(anthropic: Any, demo_daemon: Daemon) -> Iterator[Any]:
    print(f"anthropic {anthropic.__version__}")
    with anthropic.Anthropic(base_url=demo_daemon.url, api_key="any", max_retries=0, timeout=60) as made:
        yield made


def test_a_message_and_its_exact_count(client):
    answer = client.messages.create(**ASKED)
    assert "Paris" in answer.content[0].text
    usage = answer.usage
    prompt = {name: ASKED[name] for name in ("model", "messages")}
    counted = client.messages.count_tokens(**prompt).input_tokens
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    longer = client.messages.count_tokens(**prompt, system="Be brief.", tools=[TOOL]).input_tokens
    assert longer > counted


def test_a_stream_says_the_same_and_counts_it(client):
    whole = client.messages.create(**ASKED)
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason


def test_the_stop_sequence_that_ended_an_answer_is_named(client):
    asked = {**ASKED, "stop_sequences": ["nowhere", " France"]}
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for answer in (client.messages.create(**asked), streamed):
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " France")
        assert "France" not in answer.content[0].text


def test_a_schema_is_kept(client):
    asked = {**ASKED, "max_tokens": 60, "extra_body": {"temperature": 1.5, "seed": 1}}
    answer = client.messages.create(**asked, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert answer.stop_reason == "end_turn"
    assert set(json.loads(answer.content[0].text)) == {"city", "big"}


def test_a_call_is_made_and_streamed_and_answered(client):
    asked = {**ASKED, "max_tokens": 60, "tools": [TOOL]}
    with client.messages.stream(**asked, tool_choice={"type": "any", "disable_parallel_tool_use": True}) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    (call,) = (block for block in final.content if block.type == "tool_use")
    assert call.name == "weather"
    assert set(call.input) == {"city"}
    assert json.loads("".join(pieces)) == call.input
    whole = client.messages.create(**asked, tool_choice={"type": "tool", "name": "weather"})
    assert [block.input for block in whole.content if block.type == "tool_use"] == [call.input]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [*ASKED["messages"], {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
    after = client.messages.create(**{**asked, "messages": turns, "max_tokens": 1})
    assert after.usage.input_tokens + after.usage.cache_read_input_tokens > final.usage.input_tokens


def test_thinking_that_must_be_is_refused_by_name_where_the_model_has_none(client, anthropic):
    for kind in ("disabled", "adaptive"):
        assert client.messages.create(**ASKED, thinking={"type": kind}).content
    with pytest.raises(anthropic.BadRequestError, match="`thinking`"):
        client.messages.create(**{**ASKED, "max_tokens": 2048}, thinking={"type": "enabled", "budget_tokens": 1024})


def test_an_answer_that_is_begun_is_gone_on_with(client, anthropic):
    begun = {**ASKED, "messages": [*ASKED["messages"], {"role": "assistant", "content": "The capital city is called"}]}
    answer = client.messages.create(**begun)
    assert answer.content[0].text.startswith(" Paris")
    with client.messages.stream(**begun) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
    counted = client.messages.count_tokens(model=begun["model"], messages=begun["messages"]).input_tokens
    assert counted == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    begun["messages"][-1]["content"] += " "
    with pytest.raises(anthropic.BadRequestError, match="white space"):
        client.messages.create(**begun)


def test_errors_are_the_clients_own_classes(client, anthropic):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**ASKED, "max_tokens": -1})
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**ASKED, "model": "nobody"})
    assert missing.value.body["error"]["code"] == "model_not_found"


def test_closing_a_stream_ends_the_answer(client, demo_daemon):
    turns = [{"role": "user", "content": "word " * 2000}]
    with client.messages.stream(model="slow", messages=turns, max_tokens=5000) as stream:
        assert next(iter(stream.text_stream))
    demo_daemon.wait_idle("slow")
