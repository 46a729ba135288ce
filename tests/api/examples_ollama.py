"""Examples of every field of Ollama's routes, for test_params.py."""

from typing import Any

from examples_openai import SCHEMA, SCHEMA_TEXT, TOOL, Check, asked, constrained, given, sampled

from forgellm.api.schemas.ollama import EmbedBody, EmbeddingsBody, OllamaChatBody, OllamaGenerateBody
from forgellm.api.schemas.ollama_models import OllamaDeleteBody, OllamaPullBody, ShowBody

TURN = {"role": "user", "content": "hi"}


def _tools(name: str, value: Any) -> Check:
    return lambda body: getattr(body.to_requests()[0].tools, name, None) == value


ASKED: dict[str, tuple[Any, Check]] = {
    "model": ("other:latest", asked("model", "other")),
    "keep_alive": ("1h30m", asked("keep_alive_s", 5400.0)),
}

GENERATED: dict[str, tuple[Any, Check]] = {
    **ASKED,
    "options": ({"top_k": 3}, sampled("top_k", 3)),
    "stream": (False, given("stream", False)),
    "format": (SCHEMA, constrained("json_schema", SCHEMA_TEXT)),
    "think": (True, asked("template_options", {"enable_thinking": True})),
    "logprobs": (True, sampled("logprobs", 0)),
    "top_logprobs": (3, sampled("logprobs", 3)),
}

BASE: dict[Any, dict[str, Any]] = {
    OllamaChatBody: {"model": "m", "messages": [TURN]},
    OllamaGenerateBody: {"model": "m", "prompt": "hi"},
    EmbedBody: {"model": "m", "input": "hi"},
    EmbeddingsBody: {"model": "m", "prompt": "hi"},
    ShowBody: {"model": "m"},
    OllamaPullBody: {"model": "org/name"},
    OllamaDeleteBody: {"model": "org/name"},
}

CONVERSATION = [
    {"role": "assistant", "thinking": "hm", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "b", "tool_name": "f"},
]
TURNS = (
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
        "reasoning_content": "hm",
    },
    {"role": "tool", "content": "b", "name": "f"},
)

HONOURED: dict[Any, dict[str, tuple[Any, Check]]] = {
    OllamaChatBody: {
        **GENERATED,
        "messages": (CONVERSATION, asked("messages", TURNS)),
        "tools": ([TOOL], _tools("functions", (TOOL,))),
    },
    OllamaGenerateBody: {
        **GENERATED,
        "prompt": ("yo", asked("messages", ({"role": "user", "content": "yo"},))),
        "system": ("be", asked("messages", ({"role": "system", "content": "be"}, TURN))),
        "raw": (True, asked("prompt", "hi")),
    },
    EmbedBody: {
        **ASKED,
        "input": (["a", "b"], asked("inputs", ("a", "b"))),
        "truncate": (False, asked("truncate", False)),
    },
    EmbeddingsBody: {**ASKED, "prompt": ("yo", asked("inputs", ("yo",)))},
    ShowBody: {"model": ("other:latest", given("name", "other"))},
    OllamaPullBody: {
        "model": ("org/other:latest", given("name", "org/other")),
        "stream": (False, given("stream", False)),
    },
    OllamaDeleteBody: {"model": ("org/other:latest", given("name", "org/other"))},
}

NEEDS: dict[tuple[Any, str], dict[str, Any]] = {
    (body, "top_logprobs"): {"logprobs": True} for body in (OllamaChatBody, OllamaGenerateBody)
}

NO_EFFECT: dict[Any, dict[str, Any]] = {}
