"""The Anthropic routes over HTTP, on real workers with the echo engine: shapes, events, errors."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from live import Live, live

from forgellm.api import answers

pytestmark = pytest.mark.process

LONG = " ".join(str(number) for number in range(5000))
MESSAGES = "/v1/messages"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "e": {},
        "prefill": {"prefill_s": 60.0},
        "slow": {"tokens_per_s": 2.0},
        "fails": {"text": LONG, "fail_at_token": 2},
        "refuses": {"fail_at_token": 0},
    }
    with live(tmp_path_factory.mktemp("anthropic"), models) as found:
        for name in models:
            found.load(name)
        yield found


def ask(
    api: Live, content: Any = "one two three", headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    asked = {"model": "e", "max_tokens": 50, "messages": [{"role": "user", "content": content}], **body}
    return api.http.post(MESSAGES, json=asked, headers=headers)


def events(response: httpx2.Response) -> list[Any]:
    """The data of each event; each is named as its type."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    blocks = response.content.decode().split("\n\n")
    assert blocks.pop() == "", "the last event is whole"
    found = []
    for block in blocks:
        if block == ": ping":  # what comes before the first event when that is late
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message_is_answered_in_the_shape_of_anthropic(api):
    response = ask(api)
    answer = response.json()
    assert answer["id"].startswith("msg_")
    assert answer == {
        "id": response.headers["X-Request-Id"],
        "type": "message",
        "role": "assistant",
        "model": "e",
        "content": [{"type": "text", "text": "one two three"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "output_tokens": 3,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


def test_an_answer_that_was_cut_says_so(api):
    answer = ask(api, max_tokens=2).json()
    assert (answer["content"][0]["text"], answer["stop_reason"]) == ("one two", "max_tokens")


def test_the_events_of_a_stream_build_the_message(api):
    found = [event for event in events(ask(api, stream=True)) if event["type"] != "ping"]  # they come when it is quiet
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    started = found[0]["message"]
    assert (started["content"], started["stop_reason"], started["role"]) == ([], None, "assistant")
    assert found[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {event["delta"]["type"] for event in found[2:-3]} == {"text_delta"}
    assert "".join(event["delta"]["text"] for event in found[2:-3]) == "one two three"
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 3


def test_tokens_are_counted_and_nothing_is_generated(api):
    asked = {"model": "e", "messages": [{"role": "user", "content": "one two three four"}]}
    assert api.http.post(f"{MESSAGES}/count_tokens", json=asked).json() == {"input_tokens": 4}


def test_an_error_is_in_the_envelope_of_anthropic(api):
    response = ask(api, max_tokens=0)
    assert response.status_code == 400
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert (body["error"]["param"], body["error"]["code"]) == ("max_tokens", "invalid_request")
    assert "`max_tokens`" in body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "kind", "code"),
    [
        (MESSAGES, 405, "invalid_request_error", "method_not_allowed"),
        (f"{MESSAGES}/batches", 404, "not_found_error", "not_found"),
    ],
)
def test_errors_of_the_router_are_in_that_envelope_too(api, path, status, kind, code):
    response = api.http.get(path)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (status, kind, code)


def test_a_failure_before_the_first_token_has_a_real_status(api):
    for stream in (False, True):
        response = ask(api, model="refuses", stream=stream)
        assert (response.status_code, response.json()["error"]["type"]) == (500, "api_error")


def test_a_failure_after_the_first_byte_is_one_error_event(api):
    *_, last = found = events(ask(api, model="fails", stream=True))
    assert (last["type"], last["error"]["code"]) == ("error", "generation_failed")
    assert [event["type"] for event in found].count("error") == 1


def test_a_stream_that_is_quiet_before_its_first_event_sends_comments(api, monkeypatch):
    """message_start is the first event, and clients may count on that; it says how long the prompt is."""
    monkeypatch.setattr(answers, "STATUS_WAIT_S", 0.0)
    asked = {"model": "prefill", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with api.http.stream("POST", MESSAGES, json=asked) as response:
        lines = response.iter_lines()
        assert [next(lines), next(lines), next(lines)] == [": ping", "", ": ping"]


def test_a_stream_that_is_quiet_later_pings(api, monkeypatch):
    monkeypatch.setattr(answers, "QUIET_S", 0.1)
    kinds = [event["type"] for event in events(ask(api, "one two", model="slow", stream=True))]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert "ping" in kinds[3:]


def test_the_version_a_client_was_written_for_is_the_one_that_is_spoken(api):
    for version in ("2023-06-01", "2026-10-21"):
        assert ask(api, headers={"anthropic-version": version}, temperature=0).status_code == 200
    response = ask(api, headers={"anthropic-version": "2023-01-01"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "anthropic-version")


TOOL = {"name": "f", "input_schema": {"type": "object"}}
BEGUN = [{"role": "user", "content": "a"}]
GOES_ON = [*BEGUN, {"role": "assistant", "content": "b"}]
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"content": [{"type": "image", "source": {}}]}, "messages[0].content[0]"),
        ({"content": [{"type": "video"}]}, "messages[0].content[0].type"),
        ({"content": [USE]}, "messages[0].content[0]"),
        ({"messages": [*BEGUN, {"role": "assistant", "content": "b "}]}, "messages[1]"),
        ({"messages": [*BEGUN, {"role": "assistant", "content": [USE]}]}, "messages[1]"),
        (
            {"messages": [*BEGUN, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}]},
            "messages[1]",
        ),
        ({"messages": GOES_ON, "thinking": {"type": "enabled"}}, "thinking"),
        (
            {"messages": GOES_ON, "output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format",
        ),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_what_a_message_cannot_do_is_refused_by_name(api, body, field):
    response = ask(api, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)
