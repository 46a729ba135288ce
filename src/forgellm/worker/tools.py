"""How a model is told of functions, and how its calls are written: its own template's way, or a plain one.

Runs no model and calls no function; what a call's syntax means is mlx-lm's tool parsers' to say.
"""

import json
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from forgellm.errors import InvalidRequest
from forgellm.messages import Tools
from forgellm.worker.turns import text_of

MAX_FUNCTIONS = 128

_PLAIN_PROMPT = """You can call functions. These are their descriptions, one in each line:
{functions}

To call a function, write its name and its arguments as JSON between these two marks, and nothing after them:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
Several calls may follow each other. The results come back between <tool_response> and </tool_response>."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The syntax of one model's calls. `end` "": a call goes on to the end of the answer. `parse` is given what stands
    between the marks, and the functions; None: it is JSON. `is_native`: the model's template describes functions."""

    start: str
    end: str
    parse: Callable[[str, Any], Any] | None
    is_native: bool

    @property
    def is_json(self) -> bool:
        """Whether the model itself writes {"name": …, "arguments": {…}}, so that a grammar can help it."""
        return self.parse is None or self.parse.__module__.endswith(".json_tools")

    def calls(self, text: str, functions: tuple[Mapping[str, Any], ...]) -> list[tuple[str, str, str | None]]:
        """[(name, arguments as JSON, the model's own id or None)] of what stands between the marks; [] if that is no
        call of a given function: models write nonsense too."""
        names = {name_of(function) for function in functions}
        found = _as_json(text)
        if found is None and self.parse is not None:
            try:
                found = self.parse(text, [dict(function) for function in functions])
            except Exception:  # noqa: BLE001 - a parser meets free text of a model, and raises anything
                return []
        calls = found if isinstance(found, list) else [found]
        try:
            return [_checked(call, names) for call in calls]
        except (TypeError, KeyError, ValueError):
            return []


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _checked(call: Any, names: Set[str]) -> tuple[str, str, str | None]:
    arguments = call["arguments"] if "arguments" in call else call["parameters"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if call["name"] not in names or not isinstance(arguments, dict):
        raise TypeError
    given = call.get("id")
    return call["name"], json.dumps(arguments, ensure_ascii=False), given if isinstance(given, str) else None


PLAIN = ToolFormat("<tool_call>", "</tool_call>", None, False)


def format_of(tokenizer: Any) -> ToolFormat:
    """The model's own format where its template describes functions and mlx-lm can read its calls; else the plain one.
    `tokenizer`: mlx-lm's TokenizerWrapper."""
    template = tokenizer.chat_template
    knows = not isinstance(template, str) or re.search(r"\btools\b", template)
    if tokenizer.has_chat_template and tokenizer.has_tool_calling and knows:
        return ToolFormat(tokenizer.tool_call_start, tokenizer.tool_call_end, tokenizer.tool_parser, True)
    return PLAIN


def check(tools: Tools) -> None:
    """Raises InvalidRequest that names `tools` and what is wrong."""
    names = [name_of(function) for function in tools.functions]
    if not 1 <= len(names) <= MAX_FUNCTIONS:
        raise InvalidRequest(f"tools: give 1 to {MAX_FUNCTIONS} functions, not {len(names)}", field="tools")
    if len(set(names)) < len(names):
        raise InvalidRequest("tools: two functions have the same name", field="tools")
    if tools.choice == "named" and tools.name not in names:
        raise InvalidRequest(f"tools: there is no function {tools.name!r} to be called", field="tools")


def name_of(tool: Mapping[str, Any]) -> str:
    """The name of a function. Raises InvalidRequest."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InvalidRequest('tools: each must be {"type": "function", "function": {"name": …}}', field="tools")
    return name


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a function's arguments, always of an object; none given means that it takes none."""
    schema = tool["function"].get("parameters")
    if not isinstance(schema, Mapping):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {**schema, "type": "object"}


# Messages -------------------------------------------------------------------------------------------------------------


def native_messages(messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """For a template that knows calls: their arguments as objects (clients send them as strings of JSON), and a text
    where there is none."""
    return tuple(_native(message) if message.get("tool_calls") else message for message in messages)


def _native(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        name, arguments = _call_in_message(call)
        calls.append({**call, "function": {**call["function"], "name": name, "arguments": arguments}})
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def plain_messages(messages: tuple[Mapping[str, Any], ...], tools: Tools | None) -> tuple[Mapping[str, Any], ...]:
    """For a template that knows no calls: all in words, in the roles that every template knows."""
    found: list[Mapping[str, Any]] = [_plain(message) for message in messages]
    if tools is not None and tools.choice != "none":
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools.functions)
        prompt = _PLAIN_PROMPT.format(functions=lines)
        if found[0].get("role") == "system":
            first = found.pop(0)
            prompt = f"{text_of(first)}\n\n{prompt}"
        found.insert(0, {"role": "system", "content": prompt})
    return tuple(found)


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text_of(message)}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    written = [
        json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        for name, arguments in map(_call_in_message, message["tool_calls"])
    ]
    calls = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)
    return {"role": message.get("role"), "content": f"{text_of(message)}\n{calls}".strip()}


def _call_in_message(call: Any) -> tuple[str, dict[str, Any]]:
    try:
        function = call["function"]
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if isinstance(arguments, Mapping) and isinstance(function["name"], str):
            return function["name"], dict(arguments)
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    raise InvalidRequest(
        'messages: each of tool_calls must be {"function": {"name": …, "arguments": a JSON object}}', field="messages"
    )
