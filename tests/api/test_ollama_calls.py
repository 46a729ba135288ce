"""Ollama's clients get calls whole: the pieces of each are gathered, and one that was cut is left out."""

import msgspec

from forgellm.api.ollama.texts import Calls
from forgellm.messages import ToolCall
from forgellm.supervisor.generation import Token


def taken(calls: list[object]) -> list[object]:
    return [msgspec.to_builtins(call) for call in calls]


def test_a_call_is_whole_when_the_next_one_begins():
    calls = Calls()
    calls.add(Token("", parts=(ToolCall(0, "", "c0", "f"), ToolCall(0, '{"a"'))))
    assert calls.take_whole() == []
    calls.add(Token("", parts=(ToolCall(0, ": 1}"), ToolCall(1, "", "c1", "g"))))
    assert taken(calls.take_whole()) == [{"id": "c0", "function": {"name": "f", "arguments": {"a": 1}}}]
    assert calls.take_whole() == []
    assert taken(calls.take_all()) == [{"id": "c1", "function": {"name": "g", "arguments": {}}}]


def test_a_call_that_was_cut_is_left_out():
    calls = Calls()
    calls.add(Token("", parts=(ToolCall(0, '{"a"', "c0", "f"),)))
    assert calls.take_all() == []
