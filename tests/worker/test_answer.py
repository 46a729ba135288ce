"""One answer taken apart: reasoning, text and calls, however the tokens cut it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.messages import Part, Reasoning, ToolCall
from forgellm.worker.answer import Answer, CallReader, Thinking, cut
from forgellm.worker.tools import PLAIN, ToolFormat

FUNCTIONS = tuple({"type": "function", "function": {"name": name}} for name in "fgh")
MARKS = ("<think>", "</think>")
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": {"c": 1}}}\n</tool_call>'
ARGUMENTS = '{"a": "}\\"{", "b": {"c": 1}}'


class Pieces:
    """A decoder whose "tokens" are the places of pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self.is_whole = True

    def push(self, token: int) -> str:
        return self._pieces[token]


def pythonic(text: str, _functions: Any) -> dict[str, Any]:
    name, arguments = text.split(" ", 1)
    return {"name": name, "arguments": json.loads(arguments)}


def read(
    pieces: list[str],
    *stops: str,
    thinking: Thinking = "never",
    calls: bool = False,
    guided: bool = True,
    one: bool = False,
    form: ToolFormat = PLAIN,
    resume: int = 0,
) -> tuple[str, list[Part], Answer]:
    """(text, parts, the answer) of all the pieces after the first `resume`."""
    reader = CallReader(form, FUNCTIONS, "request", guided=guided, one=one) if calls else None
    answer = Answer(Pieces(pieces), stops, thinking=thinking, think_marks=MARKS, calls=reader)
    for token in range(resume):
        answer.push(token)
    answer.take_parts()
    text, parts = "", []
    for token in range(resume, len(pieces)):
        text += answer.push(token)
        parts += answer.take_parts() or ()
        if answer.is_stopped:
            break
    text += answer.finish()
    return text, [*parts, *(answer.take_parts() or ())], answer


def joined(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    """(reasoning, [(name, arguments)])."""
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, ToolCall):
            if part.name is not None:
                assert part.call_id
                calls.append((part.name, ""))
            assert part.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.arguments)
    return "".join(part.text for part in parts if isinstance(part, Reasoning)), calls


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def test_a_tail_that_may_become_a_mark_is_kept_back() -> None:
    assert cut("ab<en", "<end>") == ("ab", None)
    assert cut("ab<end>c", "<end>") == ("ab", "c")
    assert cut("ab<ex", "<end>") == ("ab<ex", None)


@given(st.lists(st.integers(0, 500), max_size=40))
def test_reasoning_text_and_calls_do_not_depend_on_how_the_tokens_cut_them(cuts: list[int]) -> None:
    whole = f"<think>\nwhy < not\n</think>\n\nI call 🙂 it:\n{CALL}\n{CALL}\n"
    text, parts, answer = read(split(whole, cuts), thinking="may", calls=True)
    assert text == "I call 🙂 it:"
    assert joined(parts) == ("why < not\n", [("f", ARGUMENTS), ("f", ARGUMENTS)])
    assert answer.has_calls
    ids = [part.call_id for part in parts if isinstance(part, ToolCall) and part.call_id]
    assert len(set(ids)) == 2


@given(st.lists(st.integers(0, 500), min_size=5, max_size=40), st.integers(0, 40))
def test_a_replay_goes_on_in_the_middle_of_anything_and_repeats_nothing(cuts: list[int], at: int) -> None:
    pieces = split(f"why</think>\n\ntext one {CALL}", cuts)
    at = min(at, len(pieces))
    text, parts, _ = read(pieces, thinking="is", calls=True)
    # What the first life showed, without what it held back at its end.
    answer = Answer(
        Pieces(pieces),
        (),
        thinking="is",
        think_marks=MARKS,
        calls=CallReader(PLAIN, (), "request", guided=True, one=False),
    )
    before = "".join(answer.push(token) for token in range(at))
    shown = list(answer.take_parts() or ())
    after, rest, _ = read(pieces, thinking="is", calls=True, resume=at)
    assert before + after == text
    assert joined(shown + rest) == joined(parts)
    ids = [part.call_id for part in shown + rest if isinstance(part, ToolCall) and part.call_id]
    assert ids == [part.call_id for part in parts if isinstance(part, ToolCall) and part.call_id]


@given(st.lists(st.integers(0, 500), max_size=40))
def test_a_stop_string_ends_the_text_and_is_not_looked_for_elsewhere(cuts: list[int]) -> None:
    pieces = split("stop in thought</think>text stop more", cuts)
    text, parts, answer = read(pieces, "stop", thinking="is")
    assert (text, joined(parts)[0], answer.is_stopped) == ("text ", "stop in thought", True)


def test_arguments_are_shown_as_they_come() -> None:
    pieces = ['<tool_call>{"name": "f", "argu', 'ments": {"a', '": 1', "}}", "</tool_call>"]
    _, parts, _ = read(pieces, calls=True)
    assert [part.arguments for part in parts if isinstance(part, ToolCall)] == ["", '{"a', '": 1', "}"]


def test_with_one_call_wanted_the_answer_ends_after_it() -> None:
    _, parts, answer = read([CALL + CALL], calls=True, one=True)
    assert joined(parts)[1] == [("f", ARGUMENTS)]
    assert answer.is_stopped


def test_a_call_in_a_models_own_syntax_comes_at_its_end() -> None:
    form = ToolFormat("[CALL]", "[/CALL]", pythonic, True)
    pieces = ["hi [CA", 'LL]g {"x": 2}[/CA', "LL]", ' [CALL]{"name": "h", "parameters": {}}[/CALL]']
    text, parts, _ = read(pieces, calls=True, guided=False, form=form)
    assert (text, joined(parts)[1]) == ("hi", [("g", '{"x": 2}'), ("h", "{}")])


def test_a_call_without_an_end_mark_goes_on_to_the_end() -> None:
    form = ToolFormat("[CALLS]", "", pythonic, True)
    text, parts, _ = read(['[CALLS]g {"x"', ": 2}"], calls=True, guided=False, form=form)
    assert (text, joined(parts)[1]) == ("", [("g", '{"x": 2}')])


@pytest.mark.parametrize("body", ["nonsense", "[1]", '{"name": 1, "arguments": {}}', '{"name": "f", "arguments": "x"}'])
def test_what_is_no_call_is_text_after_all(body: str) -> None:
    form = ToolFormat("[CALL]", "[/CALL]", pythonic, True)
    text, parts, answer = read([f"[CALL]{body}[/CALL] and"], calls=True, guided=False, form=form)
    assert (text, parts, answer.has_calls) == (f"[CALL]{body}[/CALL] and", [], False)


def test_a_think_mark_in_the_middle_of_a_text_is_text() -> None:
    text, parts, _ = read(["the <think>", " mark"], thinking="may")
    assert (text, parts) == ("the <think> mark", [])


def test_what_is_held_back_is_given_at_the_end() -> None:
    assert read(["a <tool_", "c"], calls=True)[0] == "a <tool_c"
    assert read(["a  "], calls=True)[0] == "a  "
    assert read(["<th"], thinking="may")[0] == "<th"
    assert joined(read(["thought </th"], thinking="is")[1])[0] == "thought </th"
