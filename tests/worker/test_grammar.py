"""Constraints to grammars: what llguidance is given, and what is refused before it is asked."""

import json

import pytest

from forgellm.errors import InvalidRequest
from forgellm.messages import Constraint
from forgellm.worker.grammar import MAX_BYTES, MAX_MULTIPLE, MAX_REFS, MAX_RULES, grammar


def built(kind: str, text: str = "") -> dict[str, object]:
    constraint = Constraint(kind=kind, text=text)  # type: ignore[arg-type]
    _, found = json.loads(grammar(constraint, None, "never", ("", "")))["grammars"]
    return dict(found)


def test_a_schema_keeps_to_one_line_and_cannot_switch_that_off() -> None:
    options = built("json_schema", '{"type": "object", "x-guidance": {"lenient": true}}')["json_schema"]["x-guidance"]  # type: ignore[index]
    assert options["whitespace_flexible"] is False
    assert options["lenient"] is False


def test_a_regex_may_hold_slashes_and_line_ends() -> None:
    assert built("regex", "a/b\nc")["lark_grammar"] == "start: /a\\/b\\nc/"


def test_a_json_object_is_a_schema() -> None:
    assert built("json_object")["json_schema"]["type"] == "object"  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "not JSON"),
        ("json_schema", "true", "must be a JSON object"),
        ("json_schema", "[" * 20_000, "nested too deeply"),
        ("json_schema", json.dumps({"description": "x" * MAX_BYTES}), "bytes"),
        ("json_schema", json.dumps({"anyOf": [{"$ref": "#"}] * (MAX_REFS + 1)}), r"\$ref"),
        ("json_schema", json.dumps({"multipleOf": MAX_MULTIPLE + 1}), "multipleOf"),
        ("json_schema", '{"type": "number", "multipleOf": 12.345}', "multipleOf"),
        ("json_schema", '{"type": "integer", "multipleOf": 1e9}', "multipleOf"),
        ("json_schema", json.dumps({"anyOf": [{"multipleOf": 999}] * 21}), "multipleOf"),
        ("lark", 'start: %json {"multiple\\u004ff": 99999}', "multipleOf"),
        ("lark", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(MAX_RULES)), "colons"),
        ("regex", "a" * (MAX_BYTES + 1), "bytes"),
    ],
)
def test_what_would_stall_or_kill_the_worker_is_refused_in_a_sentence(kind: str, text: str, words: str) -> None:
    """Each was measured: seconds of compiling, or a stack that overflows."""
    with pytest.raises(InvalidRequest, match=words) as caught:
        built(kind, text)
    assert caught.value.field == "constraint"


def test_a_multiple_of_is_as_long_as_its_digits() -> None:
    built("json_schema", '{"type": "number", "multipleOf": 0.01}')
    built("json_schema", '{"type": "number", "multipleOf": "x"}')
    built("json_schema", json.dumps({"properties": {str(i): {"multipleOf": 1000} for i in range(20)}}))
