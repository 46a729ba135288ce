"""Conversations for templates that are strict about roles."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from forgellm.worker.turns import stricter, text_of

ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(lambda role, text: {"role": role, "content": text}, ROLES, st.text(min_size=1)), max_size=8)


def turns(*given: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in given]


def test_what_agents_send_becomes_one_system_turn_and_then_none():
    sent = turns(("system", "a"), ("system", "b"), ("user", "c"), ("user", "d"), ("assistant", "e"), ("system", "f"))
    assert list(stricter(sent)) == [
        turns(("system", "a\n\nb"), ("user", "c\n\nd"), ("assistant", "e"), ("user", "f")),
        turns(("user", "a\n\nb\n\nc\n\nd"), ("assistant", "e"), ("user", "f")),
    ]


def test_what_is_strict_already_has_no_other_form():
    assert list(stricter(turns(("user", "a"), ("assistant", "b"), ("user", "c")))) == []


@given(TURNS)
def test_no_text_is_lost_or_moved(sent: list[dict[str, Any]]) -> None:
    said = "".join(text_of(turn) for turn in sent)
    for form in stricter(sent):
        assert "".join(text_of(turn) for turn in form).replace("\n\n", "") == said.replace("\n\n", "")
        roles = [turn["role"] for turn in form]
        assert "system" not in roles[1:]
        assert all(pair != ("user", "user") for pair in pairwise(roles))
