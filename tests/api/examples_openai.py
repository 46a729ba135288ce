"""Examples of every field of the OpenAI routes, for test_params.py."""

from collections.abc import Callable
from typing import Any

from forgellm.api.schemas.openai_chat import ChatBody
from forgellm.api.schemas.openai_responses import ResponseBody
from forgellm.api.schemas.openai_texts import CompletionBody, EmbeddingBody
from forgellm.messages import Constraint

Check = Callable[[Any], bool]

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
FLAT_TOOL = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA}
TURN = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "so"}


def sampled(name: str, value: Any) -> Check:
    """The field of Sampling has this value in every request."""
    return lambda body: {getattr(each.sampling, name) for each in body.to_requests()} == {value}


def asked(name: str, value: Any) -> Check:
    """The field of Request has this value in every request."""
    return lambda body: all(getattr(each, name) == value for each in body.to_requests())


def constrained(kind: Any, text: str = "") -> Check:
    return asked("constraint", Constraint(kind=kind, text=text))


def given(name: str, value: Any) -> Check:
    """The view reads it from the body; that it changes the answer is in test_openai_api.py."""
    return lambda body: getattr(body, name) == value


def _tools(name: str, value: Any) -> Check:
    return lambda body: getattr(body.to_requests()[0].tools, name, None) == value


SAMPLED: dict[str, tuple[Any, Check]] = {
    "model": ("other", asked("model", "other")),
    "temperature": (0.5, sampled("temperature", 0.5)),
    "top_p": (0.5, sampled("top_p", 0.5)),
    "n": (3, lambda body: [each.sampling.seed for each in body.to_requests()] == [5, 6, 7]),
    "stop": (["a", "b"], sampled("stop", ("a", "b"))),
    "seed": (9, sampled("seed", 9)),
    "presence_penalty": (1.5, sampled("presence_penalty", 1.5)),
    "frequency_penalty": (-1.5, sampled("frequency_penalty", -1.5)),
    "logit_bias": ({"7": -100}, sampled("logit_bias", ((7, -100.0),))),
    "stream": (True, given("stream", True)),
    "stream_options": ({"include_usage": True}, lambda body: body.stream_options is not None),
    "response_format": ({"type": "json_object"}, constrained("json_object")),
    "guided_json": (SCHEMA, constrained("json_schema", SCHEMA_TEXT)),
    "guided_regex": ("a+", constrained("regex", "a+")),
    "guided_choice": (["a.b", "c"], constrained("regex", r"a\.b|c")),
    "guided_grammar": ('start: "a"', constrained("lark", 'start: "a"')),
    "structured_outputs": ({"regex": "a+"}, constrained("regex", "a+")),
    "top_k": (3, sampled("top_k", 3)),
    "min_p": (0.25, sampled("min_p", 0.25)),
    "repetition_penalty": (1.5, sampled("repetition_penalty", 1.5)),
}

BASE: dict[Any, dict[str, Any]] = {
    ChatBody: {"model": "m", "messages": [TURN]},
    CompletionBody: {"model": "m", "prompt": "hi"},
    ResponseBody: {"model": "m", "input": "hi"},
    EmbeddingBody: {"model": "m", "input": "hi"},
}

HONOURED: dict[Any, dict[str, tuple[Any, Check]]] = {
    ChatBody: {
        **SAMPLED,
        "messages": (
            [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            asked("messages", ({"role": "system", "content": "ab"},)),
        ),
        "max_completion_tokens": (5, sampled("max_tokens", 5)),
        "max_tokens": (5, sampled("max_tokens", 5)),
        "logprobs": (True, sampled("logprobs", 0)),
        "top_logprobs": (3, sampled("logprobs", 3)),
        "tools": ([TOOL], _tools("functions", (TOOL,))),
        "tool_choice": ("required", _tools("choice", "required")),
        "parallel_tool_calls": (False, _tools("parallel", False)),
        "reasoning_effort": ("low", asked("template_options", {"reasoning_effort": "low"})),
        "chat_template_kwargs": ({"enable_thinking": False}, asked("template_options", {"enable_thinking": False})),
        "thinking_token_budget": (0, asked("thinking_budget", 0)),
        "continue_final_message": (True, asked("continue_final", True)),
        "add_generation_prompt": (False, asked("continue_final", True)),
    },
    CompletionBody: {
        **SAMPLED,
        "prompt": ([[1, 2], [3]], lambda body: [each.prompt for each in body.to_requests()] == [(1, 2), (3,)]),
        "max_tokens": (5, sampled("max_tokens", 5)),
        "echo": (True, lambda body: body.echoed(0) == "hi"),
        "logprobs": (3, sampled("logprobs", 3)),
    },
    ResponseBody: {
        **{name: SAMPLED[name] for name in SAMPLED if name in ResponseBody.__struct_fields__},
        "input": (
            [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "b"},
            ],
            asked(
                "messages",
                (
                    {"role": "user", "content": "a"},
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}],
                        "reasoning_content": "hm",
                    },
                    {"role": "tool", "tool_call_id": "c", "content": "b"},
                ),
            ),
        ),
        "instructions": ("be", asked("messages", ({"role": "system", "content": "be"}, TURN))),
        "max_output_tokens": (5, sampled("max_tokens", 5)),
        "text": (
            {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
            constrained("json_schema", SCHEMA_TEXT),
        ),
        "tools": ([FLAT_TOOL, {"type": "web_search"}], _tools("functions", (TOOL,))),
        "tool_choice": ({"type": "function", "name": "f"}, _tools("name", "f")),
        "parallel_tool_calls": (False, _tools("parallel", False)),
        "reasoning": ({"effort": "low"}, asked("template_options", {"reasoning_effort": "low"})),
        "include": (["message.output_text.logprobs"], sampled("logprobs", 0)),
        "top_logprobs": (3, sampled("logprobs", 3)),
    },
    EmbeddingBody: {
        "model": SAMPLED["model"],
        "input": (["a", "b"], asked("inputs", ("a", "b"))),
        "encoding_format": ("base64", given("encoding_format", "base64")),
    },
}

NEEDS: dict[tuple[Any, str], dict[str, Any]] = {
    (ChatBody, "continue_final_message"): {"messages": [TURN, BEGUN]},
    (ChatBody, "add_generation_prompt"): {"messages": [TURN, BEGUN], "continue_final_message": True},
    (ChatBody, "n"): {"seed": 5},
    (CompletionBody, "n"): {"seed": 5},
    (ChatBody, "stream_options"): {"stream": True},
    (CompletionBody, "stream_options"): {"stream": True},
    (ChatBody, "top_logprobs"): {"logprobs": True},
    (ChatBody, "tool_choice"): {"tools": [TOOL]},
    (ChatBody, "parallel_tool_calls"): {"tools": [TOOL]},
    (ResponseBody, "tool_choice"): {"tools": [FLAT_TOOL]},
    (ResponseBody, "parallel_tool_calls"): {"tools": [FLAT_TOOL]},
}

NO_EFFECT: dict[Any, dict[str, Any]] = {
    ChatBody: {
        "user": "somebody",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "somebody",
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "auto"},
        "prompt_cache_retention": "24h",
    },
    CompletionBody: {"user": "somebody", "metadata": {"a": "b"}},
    EmbeddingBody: {"user": "somebody"},
    ResponseBody: {
        "client_metadata": {"thread_id": "t"},
        "user": "somebody",
        "metadata": {"a": "b"},
        "service_tier": "default",
        "safety_identifier": "somebody",
        "prompt_cache_key": "k",
        "prompt_cache_options": {"mode": "auto"},
        "prompt_cache_retention": "24h",
    },
}
