"""Calls as models of several families write them, read by mlx-lm's parsers behind our one form."""

import importlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from forgellm.worker.tools import PLAIN, ToolFormat, format_of

pytestmark = pytest.mark.model

FUNCTIONS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    },
)
BODIES = {
    "json_tools": '\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n',
    "pythonic": '[weather(city="Paris", days=2)]',
    "qwen3_coder": "\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n",
    "glm47": "weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n",
    "mistral": '[{"name": "weather", "arguments": {"city": "Paris", "days": 2}}]',
    "gemma4": 'call:weather{city:<|"|>Paris<|"|>,days:2}',
    "kimi_k2": "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 2}<|tool_call_end|>',
    "minimax_m2": '\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n',
    "longcat": "weather\n<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Paris</longcat_arg_value>\n"
    "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>2</longcat_arg_value>\n",
}


def form(parser: str) -> ToolFormat:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    return ToolFormat(module.tool_call_start, module.tool_call_end, module.parse_tool_call, True)


@pytest.mark.parametrize("parser", BODIES)
def test_a_call_in_a_familys_own_syntax_is_read(parser: str) -> None:
    ((name, arguments, _),) = form(parser).calls(BODIES[parser], FUNCTIONS)
    assert (name, json.loads(arguments)) == ("weather", {"city": "Paris", "days": 2})


@pytest.mark.parametrize("parser", BODIES)
@pytest.mark.parametrize(
    "text", ["", "nonsense", "{", "[1, 2]", "null", '{"name": "weather"}', "<function=", "weather("]
)
def test_what_is_no_call_is_no_error(parser: str, text: str) -> None:
    """Some parsers raise, some give half a call; some read a call without arguments, which is one."""
    assert all(json.loads(arguments) == {} for _, arguments, _ in form(parser).calls(text, FUNCTIONS))


def test_only_json_is_kept_to_by_a_grammar() -> None:
    assert [name for name in BODIES if form(name).is_json] == ["json_tools"]
    assert PLAIN.is_json


@pytest.mark.parametrize("template", ["{{ messages }}", "no tools_here"])
def test_a_template_that_does_not_render_tools_gets_the_plain_form(template: str) -> None:
    """Llama's, say, whose calls mlx-lm cannot read, or one whose vocabulary alone has the marks."""
    fake: Any = SimpleNamespace(chat_template=template, has_chat_template=True, has_tool_calling=True)
    assert format_of(fake) is PLAIN
