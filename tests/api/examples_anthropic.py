"""Examples of every field of the Anthropic routes, for test_params.py."""

from typing import Any

from examples_openai import SCHEMA, SCHEMA_TEXT, TOOL, Check, asked, constrained, given, sampled

from forgellm.api.schemas.anthropic import CountBody, MessagesBody

TURN = {"role": "user", "content": "hi"}
OWN_TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}


def _tools(name: str, value: Any) -> Check:
    return lambda body: getattr(body.to_requests()[0].tools, name, None) == value


def _thinks(body: Any) -> bool:
    (request,) = body.to_requests()
    wanted = (request.template_options, request.thinking_budget) == ({"enable_thinking": True}, 7)
    return wanted and not body.shows_thinking


CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "Em8K"},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "no"}], "is_error": True},
            {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
        ],
    },
]
TURNS = (
    {"role": "user", "content": "a\n\nb"},
    {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "Error: no"},
    {"role": "user", "content": "go on"},
)

PROMPT: dict[str, tuple[Any, Check]] = {
    "model": ("other", asked("model", "other")),
    "messages": (CONVERSATION, asked("messages", TURNS)),
    "system": (
        [{"type": "text", "text": "be"}, {"type": "text", "text": "good"}],
        asked("messages", ({"role": "system", "content": "be\n\ngood"}, TURN)),
    ),
    "tools": ([OWN_TOOL], _tools("functions", (TOOL,))),
    "tool_choice": ({"type": "tool", "name": "f"}, _tools("name", "f")),
    "thinking": ({"type": "enabled", "budget_tokens": 7, "display": "omitted"}, _thinks),
    "context_management": (
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        lambda body: body.context_management is not None,
    ),
    "output_config": (
        {"format": {"type": "json_schema", "schema": SCHEMA}},
        constrained("json_schema", SCHEMA_TEXT),
    ),
}

BASE: dict[Any, dict[str, Any]] = {
    MessagesBody: {"model": "m", "messages": [TURN], "max_tokens": 9},
    CountBody: {"model": "m", "messages": [TURN]},
}

HONOURED: dict[Any, dict[str, tuple[Any, Check]]] = {
    CountBody: PROMPT,
    MessagesBody: {
        **PROMPT,
        "max_tokens": (5, sampled("max_tokens", 5)),
        "stop_sequences": (["a", "b"], sampled("stop", ("a", "b"))),
        "temperature": (0.5, sampled("temperature", 0.5)),
        "top_p": (0.5, sampled("top_p", 0.5)),
        "top_k": (3, sampled("top_k", 3)),
        "seed": (9, sampled("seed", 9)),
        "stream": (True, given("stream", True)),
    },
}

NEEDS: dict[tuple[Any, str], dict[str, Any]] = {(body, "tool_choice"): {"tools": [OWN_TOOL]} for body in BASE}

NO_EFFECT: dict[Any, dict[str, Any]] = {
    CountBody: {"cache_control": {"type": "ephemeral"}, "user_profile_id": "p", "workspace_id": "w"},
    MessagesBody: {
        "user_profile_id": "p",
        "workspace_id": "w",
        "cache_control": {"type": "ephemeral"},
        "metadata": {"user_id": "somebody"},
        "service_tier": "auto",
    },
}
