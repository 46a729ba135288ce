"""The blocks of an Anthropic answer, from tokens that no model had to write."""

from typing import Any

from forgellm.api.anthropic import Blocks
from forgellm.messages import Reasoning, Stopped, ToolCall
from forgellm.supervisor.generation import Token

TOKENS = [
    Token("", parts=(Reasoning("h"),)),
    Token("so", parts=(Reasoning("m"),)),
    Token(" be", parts=None),
    Token("", parts=(ToolCall(0, "", "c0", "f"),)),
    Token("", parts=(ToolCall(0, '{"a"'), ToolCall(0, ": 1}"))),
    Token("", parts=(ToolCall(1, "{}", "c1", "g"),)),
    Token("", parts=(Stopped("END"),)),
]
CONTENT = [
    {"type": "thinking", "thinking": "hm", "signature": ""},
    {"type": "text", "text": "so be"},
    {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
    {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
]


def said(*tokens: Token, shows_thinking: bool = True) -> tuple[Blocks, list[dict[str, Any]]]:
    blocks = Blocks(shows_thinking=shows_thinking)
    found = [event for token in tokens for event in blocks.add(token)]
    return blocks, [*found, *blocks.end()]


def test_thinking_text_and_calls_are_blocks_in_their_order():
    blocks, _ = said(*TOKENS)
    assert blocks.content == CONTENT
    assert blocks.stop_sequence == "END"


def test_thinking_that_is_not_to_be_shown_leaves_an_empty_block():
    blocks, found = said(*TOKENS, shows_thinking=False)
    assert blocks.content == [{"type": "thinking", "thinking": "", "signature": ""}, *CONTENT[1:]]
    assert not any(event.get("delta", {}).get("type") == "thinking_delta" for event in found)


def test_one_block_is_open_at_a_time_and_each_is_closed():
    _, found = said(*TOKENS)
    open_now: list[int] = []
    for event in found:
        if event["type"] == "content_block_start":
            assert open_now == []
            open_now.append(event["index"])
        elif event["type"] == "content_block_stop":
            assert open_now.pop() == event["index"]
        else:
            assert open_now == [event["index"]]
    assert open_now == []


def test_arguments_are_sent_as_they_come():
    _, found = said(*TOKENS)
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert starts[2] == {"type": "tool_use", "id": "c0", "name": "f", "input": {}}
    pieces = [event["delta"]["partial_json"] for event in found if "partial_json" in event.get("delta", {})]
    assert pieces == ['{"a"', ": 1}", "{}"]


def test_a_call_that_was_cut_has_an_empty_input():
    blocks, _ = said(*TOKENS[3:4], Token("", parts=(ToolCall(0, '{"a"'),)))
    assert blocks.content[0]["input"] == {}


def test_an_answer_of_nothing_has_no_block():
    assert said()[0].content == []
