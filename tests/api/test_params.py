"""Every field of every route does what its row says: an honoured one changes the request, a refused one is named.

A module of examples for each dialect holds, by body: `BASE`, a body that is complete; `HONOURED`, a value of each field
and whether a body does what it says; `NO_EFFECT`, a value; `NEEDS`, what else a field needs. A row without one fails.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import examples_anthropic
import examples_native
import examples_ollama
import examples_openai
import msgspec
import pytest

from forgellm.api import params
from forgellm.api.app import DIALECTS
from forgellm.api.params import Row
from forgellm.errors import Unsupported

MODULES = {
    "forgellm": examples_native,
    "openai": examples_openai,
    "anthropic": examples_anthropic,
    "ollama": examples_ollama,
}

ROWS = list(params.rows(DIALECTS))


def decode(row: Row, **fields: Any) -> Any:
    base = MODULES[row.dialect].BASE[row.body]
    return row.body.decode(msgspec.json.encode({**base, **fields}), "application/json")


def neutral(body: Any) -> Sequence[Any]:
    """The requests, without the ids that are born with each; of a body that asks for none, its model or itself."""
    if not hasattr(body, "to_requests"):
        return [getattr(body, "model", body)]
    return [replace(each, request_id="") for each in body.to_requests()]


def of(verdict: str) -> Sequence[Any]:
    return [pytest.param(row, id=f"{row.path} {row.param.name}") for row in ROWS if row.param.verdict == verdict]


@pytest.mark.parametrize("row", of("honoured"))
def test_an_honoured_field_changes_the_request_as_it_says(row: Row) -> None:
    value, check = MODULES[row.dialect].HONOURED[row.body][row.param.name]
    also = MODULES[row.dialect].NEEDS.get((row.body, row.param.name), {})
    with_it = decode(row, **also, **{row.param.name: value})
    assert check(with_it), "the example does what the field says"
    if row.param.name not in MODULES[row.dialect].BASE[row.body]:
        assert not check(decode(row)), "without the field, it does not"


@pytest.mark.parametrize("row", of("no effect"))
def test_a_field_without_effect_is_accepted_and_has_none(row: Row) -> None:
    value = MODULES[row.dialect].NO_EFFECT[row.body][row.param.name]
    assert neutral(decode(row, **{row.param.name: value})) == neutral(decode(row))


@pytest.mark.parametrize("row", of("only"))
def test_a_field_of_one_value_takes_no_other(row: Row) -> None:
    assert neutral(decode(row, **{row.param.name: row.param.value})) == neutral(decode(row))
    for other in ("other", 7, not row.param.value):
        with pytest.raises(Unsupported) as caught:
            decode(row, **{row.param.name: other})
        assert caught.value.field == row.param.name
        assert row.param.says in caught.value.message


@pytest.mark.parametrize("row", of("refused"))
def test_a_refused_field_is_named_with_the_reason_unless_it_is_null(row: Row) -> None:
    for value in ("x", 0, False, [], {}):
        with pytest.raises(Unsupported) as caught:
            decode(row, **{row.param.name: value})
        assert caught.value.field == row.param.name
        assert row.param.says in caught.value.message
    assert neutral(decode(row, **{row.param.name: None})) == neutral(decode(row))


def test_every_row_says_what_the_field_does() -> None:
    assert [f"{row.path} {row.param.name}" for row in params.rows(DIALECTS) if not row.param.says] == []
