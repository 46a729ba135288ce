"""The bodies of coding agents are taken as they are: nothing but the base URL is theirs to set."""

from typing import Any

import msgspec
import pytest

import agents
from forgellm.api.schemas.anthropic import MessagesBody
from forgellm.api.schemas.openai_responses import ResponseBody
from forgellm.errors import Unsupported


def claude_code(**fields: Any) -> MessagesBody:
    return MessagesBody.decode(msgspec.json.encode({**agents.CLAUDE_CODE, **fields}), "application/json")


def codex(**fields: Any) -> ResponseBody:
    return ResponseBody.decode(msgspec.json.encode({**agents.CODEX, **fields}), "application/json")


def test_claude_codes_defaults_are_left_to_the_model():
    (request,) = claude_code().to_requests()
    assert request.template_options == {}
    assert request.template_hints == {"enable_thinking": True, "reasoning_effort": "high"}
    assert request.sampling.max_tokens == 32000
    assert [turn["role"] for turn in request.messages or ()] == ["system", "user", "system"]


def test_what_claude_code_can_be_set_to_and_no_model_here_can_do_is_refused_by_name():
    cleared = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    for field, value in (("context_management", cleared), ("speed", "fast"), ("container", "c")):
        with pytest.raises(Unsupported) as caught:
            claude_code(**{field: value})
        assert (caught.value.field or "").startswith(field)
    (request,) = claude_code(output_config={"effort": "low"}).to_requests()
    assert request.template_options == {"reasoning_effort": "low"}, "the worker refuses it where there is no such word"


def test_claude_codes_conversation_goes_on_after_a_call():
    turns = (
        claude_code(messages=[*agents.CLAUDE_CODE["messages"], *agents.CLAUDE_CODE_GOES_ON]).to_requests()[0].messages
    )
    assert [turn["role"] for turn in turns or ()] == ["system", "user", "system", "assistant", "tool"]


def test_codex_functions_in_namespaces_have_names_of_their_own():
    body = codex()
    (request,) = body.to_requests()
    assert request.tools is not None
    names = [tool["function"]["name"] for tool in request.tools.functions]
    assert names == ["exec_command", "multi_agent_v1__close_agent"]
    assert body.namespaced == {"multi_agent_v1__close_agent": ("multi_agent_v1", "close_agent")}
    assert (request.template_options, request.template_hints) == ({}, {})


def test_a_call_that_codex_sends_back_has_the_name_that_the_model_knows():
    turns = codex(input=[*agents.CODEX["input"], *agents.CODEX_GOES_ON]).to_requests()[0].messages or ()
    assert [turn["role"] for turn in turns] == ["system", "system", "user", "user", "assistant", "tool"]
    assert turns[4]["tool_calls"][0]["function"] == {
        "name": "multi_agent_v1__close_agent",
        "arguments": {"target": "a"},
    }
    assert turns[4]["reasoning_content"] == "hm"


def test_tools_that_the_server_would_have_to_run_are_refused_where_there_is_nothing_else():
    with pytest.raises(Unsupported) as caught:
        codex(tools=[{"type": "web_search"}])
    assert caught.value.field == "tools"
