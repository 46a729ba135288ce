"""What Claude Code and Codex CLI send, sent to a daemon with the demo model: answers and calls they can go on with."""

import json
from typing import Any

import pytest

import agents
from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]


def events(daemon: Daemon, path: str, body: dict[str, Any], headers: dict[str, str]) -> list[dict[str, Any]]:
    answer = daemon.http.post(path, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_claude_code_is_answered_and_goes_on_after_a_call(demo_daemon):
    turns = [*agents.CLAUDE_CODE["messages"], *agents.CLAUDE_CODE_GOES_ON]
    body = {**agents.CLAUDE_CODE, "messages": turns, "max_tokens": 4, "temperature": 0}  # sampled, it may end before
    said = events(demo_daemon, agents.CLAUDE_CODE_PATH, body, agents.CLAUDE_CODE_HEADERS)
    assert [said[0]["type"], said[-1]["type"]] == ["message_start", "message_stop"]
    assert said[-2]["usage"]["output_tokens"] == 4


def test_claude_code_is_told_that_its_prompt_is_too_long_in_the_words_it_looks_for(demo_daemon):
    body = {**agents.CLAUDE_CODE, "system": "word " * 9000}
    answer = demo_daemon.http.post(agents.CLAUDE_CODE_PATH, json=body, headers=agents.CLAUDE_CODE_HEADERS)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("prompt is too long")


def test_codex_gets_a_call_in_a_namespace_and_goes_on_after_it(demo_daemon):
    asked = {**agents.CODEX, "max_output_tokens": 60, "parallel_tool_calls": False}
    asked["tool_choice"] = {"type": "function", "name": "multi_agent_v1__close_agent"}
    said = events(demo_daemon, agents.CODEX_PATH, asked, agents.CODEX_HEADERS)
    assert said[-1]["type"] == "response.completed"
    (call,) = said[-1]["response"]["output"]
    assert (call["type"], call["namespace"], call["name"]) == ("function_call", "multi_agent_v1", "close_agent")
    assert json.loads(call["arguments"])["target"] in {"a", "b"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "closed"}
    goes_on = {**agents.CODEX, "input": [*agents.CODEX["input"], call, result], "max_output_tokens": 2}
    assert events(demo_daemon, agents.CODEX_PATH, goes_on, agents.CODEX_HEADERS)[-1]["response"]["output"]
