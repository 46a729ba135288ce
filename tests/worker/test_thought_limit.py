"""A budget of reasoning: its end is forced after so many tokens, with any grammar behind it and in any life."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from test_answer import MARKS
from test_mlx_engine import TEXTS, Answers, chat, run
from test_tools import TEMPLATE, WEATHER, parts

import tiny_model
from forgellm.messages import Constraint, Reasoning, Request, ToolCall, Tools
from forgellm.worker.answer import Answer
from forgellm.worker.mlx_engine import MLXEngine
from forgellm.worker.text import _ByteDecoder
from forgellm.worker.thought_limit import ThoughtLimit

pytestmark = pytest.mark.model

HEATED: dict[str, Any] = {"temperature": 1.5, "seed": 5, "repetition_penalty": 1.3, "max_tokens": 200}
WORD = Constraint(kind="regex", text="[a-f]{4}")
CALL = Tools(functions=(WEATHER,), choice="required", parallel=False)
FOLLOWED: list[dict[str, Any]] = [{}, {"constraint": WORD}, {"tools": CALL}, {"tools": replace(CALL, choice="auto")}]


@pytest.fixture(scope="module")
def engine(load_engine: Callable[..., MLXEngine], tmp_path_factory: pytest.TempPathFactory) -> MLXEngine:
    marks = (*MARKS, "<tool_call>", "</tool_call>")
    folder = tmp_path_factory.mktemp("thinks")
    return load_engine(
        tiny_model.build(folder, chat_template=TEMPLATE, extra_tokens=marks, context=2048), prefix_cache_bytes=0
    )


def token_of(engine: MLXEngine, mark: str) -> int:
    return int(engine._prompts._tokenizer.convert_tokens_to_ids(mark))


def thinks(budget: int | None, begun: str = "on", more: dict[str, Any] | None = None, **knobs: Any) -> Request:
    request = replace(chat("r", TEXTS[0], **knobs), thinking_budget=budget, **(more or {}))
    return replace(request, template_options={"thinking": begun}) if begun else request


def reasoning(answers: Answers) -> str:
    return "".join(part.text for part in parts(answers) if isinstance(part, Reasoning))


@pytest.mark.parametrize("budget", [0, 1, 7, 20])
def test_reasoning_ends_when_its_budget_is_spent_and_not_before(engine: MLXEngine, budget: int) -> None:
    free, held = run(engine, thinks(None, max_tokens=30)), run(engine, thinks(budget, max_tokens=30))
    assert held.tokens("r")[:budget] == free.tokens("r")[:budget]
    assert held.tokens("r")[budget] == token_of(engine, "</think>")
    assert free.text("r") == "", "left to itself, this model never comes back"
    assert held.text("r")
    assert reasoning(free).startswith(reasoning(held))
    assert "<" not in reasoning(held)


def test_a_mark_that_the_model_writes_itself_is_the_end(engine: MLXEngine) -> None:
    for budget in (None, 150):
        knobs = {**HEATED, "logit_bias": ((token_of(engine, "</think>"), 8.0),)}
        answers = run(engine, thinks(budget, **knobs))
        assert answers.tokens("r").index(token_of(engine, "</think>")) < 100
        if budget is None:
            free = answers.tokens("r")
    assert answers.tokens("r") == free


def test_reasoning_that_the_model_begins_is_counted_from_its_mark(engine: MLXEngine) -> None:
    start, end = token_of(engine, "<think>"), token_of(engine, "</think>")
    answers = run(engine, thinks(3, "", logit_bias=((start, 60.0),), max_tokens=6))
    assert answers.tokens("r")[0] == start
    assert answers.tokens("r")[4] == end
    none = [run(engine, thinks(budget, "off", max_tokens=12)).tokens("r") for budget in (None, 3)]
    assert none[0] == none[1], "no reasoning, nothing to bound"


@pytest.mark.parametrize("more", FOLLOWED, ids=["text", "a word", "a call", "perhaps a call"])
@pytest.mark.parametrize("seed", range(3))
def test_what_follows_keeps_to_what_was_asked_for(engine: MLXEngine, more: dict[str, Any], seed: int) -> None:
    """At this temperature the budget runs out in the middle of code points, where a grammar has no place for a mark."""
    answers = run(engine, thinks(12, more=more, **{**HEATED, "seed": seed}))
    assert answers.failures() == []
    assert 12 <= answers.tokens("r").index(token_of(engine, "</think>")) <= 12 + 3
    if "constraint" in more:
        assert re.fullmatch("[a-f]{4}", answers.text("r"))
    if more.get("tools") == CALL:
        assert any(isinstance(part, ToolCall) for part in parts(answers))


@pytest.mark.parametrize("more", FOLLOWED, ids=["text", "a word", "a call", "perhaps a call"])
def test_a_life_that_ends_anywhere_around_the_mark_leaves_the_same_answer(
    engine: MLXEngine, more: dict[str, Any]
) -> None:
    request = thinks(6, more=more, **{**HEATED, "max_tokens": 32})
    whole = run(engine, request)
    for cut in (1, 5, 6, 7, 8, 9, 10):
        before = whole.chunks["r"][:cut]
        resumed = replace(request, resume=tuple(token for chunk in before for token in chunk[2]))
        after = run(engine, resumed, chat("x", TEXTS[1]))
        assert resumed.resume + tuple(after.tokens("r")) == tuple(whole.tokens("r"))
        assert "".join(chunk[1] for chunk in before) + after.text("r") == whole.text("r")
        assert [part for chunk in before for part in chunk[6] or ()] + parts(after) == parts(whole)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("begun", ["<think>", " \n<think>"])
def test_a_call_in_a_thought_is_a_thought_and_does_not_keep_it_from_ending(
    engine: MLXEngine, begun: str, parallel: bool
) -> None:
    """A grammar that took it for a call would let no mark through before the call's end."""
    tools = replace(CALL, choice="auto", parallel=parallel)
    encode = engine._prompts._tokenizer.encode
    thought = tuple(encode(f"{begun}we call<tool_call>it", add_special_tokens=False))
    spent = len(thought) - len(encode(begun, add_special_tokens=False))
    answers = run(engine, replace(thinks(spent + 2, "", more={"tools": tools}, max_tokens=40), resume=thought))
    assert answers.failures() == []
    assert token_of(engine, "</think>") in answers.tokens("r")[2:6]
    whole = tuple(encode("so<think>no</think>", add_special_tokens=False))
    answers = run(engine, replace(thinks(0, "", more={"tools": tools}, max_tokens=40), resume=whole))
    assert answers.failures() == []
    assert parts(answers) == []


def test_a_budget_is_the_same_alone_and_among_others(engine: MLXEngine) -> None:
    requests = [replace(thinks(i, **{**HEATED, "seed": i, "max_tokens": 24}), request_id=str(i)) for i in range(6)]
    together = run(engine, *requests, chat("free", TEXTS[1]))
    for request in requests:
        assert together.tokens(request.request_id) == run(engine, request).tokens(request.request_id)


# The limit itself, with bytes for tokens ---


def limit(budget: int, mark: bytes = b"</think>", thought: str = "</think>") -> ThoughtLimit:
    decoder = _ByteDecoder(lambda token: bytes([token]), strips_first_space=False)
    return ThoughtLimit(budget, Answer(decoder, (), thinking="is", think_marks=("<think>", thought)), list(mark), 2)


def written(held: ThoughtLimit, wishes: bytes, length: int, denied: bytes = b"") -> bytes:
    """The answer of a model that wishes to say `wishes`, where a mask that is there first allows none of `denied` in
    the first six places."""
    answer = b""
    for place in range(length):
        logits = mx.zeros((1, 256))
        logits[0, wishes[place]] = 5.0
        for byte in denied if place < 6 else b"":
            logits[0, byte] = -mx.inf
        answer += bytes([int(mx.argmax(held(mx.array([1, 1, *answer]), logits)))])
    return answer


def test_a_mark_of_many_tokens_is_written_to_its_end() -> None:
    assert written(limit(3), b"abcdefghijklmnop", 14) == b"abc</think>lmn"


def test_a_mark_that_was_begun_does_not_confuse_it() -> None:
    assert written(limit(4), b"ab</think>lmnopqrst", 14) == b"ab</</think>no"


def test_a_character_that_was_begun_is_finished_first_but_garbage_does_not_go_on_for_ever() -> None:
    assert written(limit(2), "a🙂bcdefghijklmnop".encode(), 14) == "a🙂</think>j".encode()
    assert written(limit(1), b"\xf0" * 20, 13) == b"\xf0\xf0\xf0\xf0</think>\xf0"


def test_where_a_grammar_has_no_place_for_the_mark_it_comes_as_soon_as_there_is_one() -> None:
    assert written(limit(3), b"abcdefghijklmnopq", 15, denied=b"<") == b"abcdef</think>o"


def test_a_mark_that_reads_otherwise_than_it_is_written_is_written_once() -> None:
    assert written(limit(2, b"#", "</think>"), b"abcdef", 6) == b"ab#def"
