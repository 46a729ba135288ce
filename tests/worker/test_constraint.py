"""Answers that keep to a schema, a regex or a grammar, whatever else was asked for and wherever a worker died."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_mlx_engine import EOS_ID, TEXTS, chat, raw, run

from forgellm.errors import InvalidRequest, Unsupported
from forgellm.messages import Constraint, Request
from forgellm.worker.mlx_engine import MLXEngine

pytestmark = pytest.mark.model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "kind": {"enum": ["fox", "dog", "naïve 🙂"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
LARK = 'start: "<" WORD (", " WORD)? ">"\nWORD: /[a-z]{1,9}/'
KNOBS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 1.5, "seed": 4, "top_k": 1},
    {"temperature": 1.5, "seed": 5, "top_p": 0.1, "min_p": 0.9},
    {"repetition_penalty": 10.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    {"temperature": 1.5, "seed": 6, "logit_bias": ((EOS_ID, 100.0), (40, 100.0), (1, 100.0))},
]


@pytest.fixture(scope="module")
def engine(load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> MLXEngine:
    return load_engine(tiny_folder, prefix_cache_bytes=0)


def asked(request_id: str, kind: str, text: str = "", prompt: str = TEXTS[0], **knobs: Any) -> Request:
    constraint = Constraint(kind=kind, text=text)  # type: ignore[arg-type]
    return replace(chat(request_id, prompt, **{"max_tokens": 200, **knobs}), constraint=constraint)


def schema(request_id: str, **knobs: Any) -> Request:
    return asked(request_id, "json_schema", json.dumps(SCHEMA), **knobs)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_an_answer_keeps_to_its_schema_whatever_else_was_asked_for(engine: MLXEngine, knobs: dict[str, Any]) -> None:
    """Penalties, biases and filters choose among what the grammar allows; none can let another token through."""
    answers = run(engine, schema("r", **knobs))
    assert answers.failures() == []
    jsonschema.validate(json.loads(answers.text("r")), SCHEMA)
    assert answers.last("r")[4] == "stop"
    assert answers.tokens("r")[-1] == EOS_ID


@pytest.mark.parametrize("seed", range(4))
def test_a_regex_a_grammar_and_any_json_object_are_kept_to(engine: MLXEngine, seed: int) -> None:
    knobs: dict[str, Any] = {"temperature": 1.5, "seed": seed}
    answers = run(
        engine,
        asked("regex", "regex", r"(a/b|[0-9]{3}-\d+é?){2,3}", **knobs),
        asked("lark", "lark", LARK, **knobs),
        asked("object", "json_object", max_tokens=8, **knobs),
        replace(raw("raw", "one two", **knobs), constraint=Constraint(kind="regex", text=" three| four")),
    )
    assert answers.failures() == []
    assert answers.last("regex")[4] == "length" or re.fullmatch(r"(a/b|[0-9]{3}-\d+é?){2,3}", answers.text("regex"))
    assert re.fullmatch(r"<[a-z]{1,9}(, [a-z]{1,9})?>", answers.text("lark"))
    assert answers.text("object").startswith("{")
    assert answers.text("raw") in (" three", " four")


def test_an_answer_cut_off_inside_its_grammar_says_length(engine: MLXEngine) -> None:
    answers = run(engine, schema("r", max_tokens=5))
    assert (answers.last("r")[4], len(answers.tokens("r"))) == ("length", 5)


def test_a_seed_gives_the_same_constrained_text_alone_and_in_a_batch_of_eight(engine: MLXEngine) -> None:
    """Half of the batch is free: neither half may touch the other."""
    requests = [
        (schema if i % 2 else chat)(str(i), temperature=1.2, seed=i, logprobs=1, max_tokens=40) for i in range(8)
    ]
    together = run(engine, *requests)
    for request in requests:
        name = request.request_id
        alone = run(engine, request)
        assert together.text(name) == alone.text(name)
        assert together.tokens(name) == alone.tokens(name)


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_a_constrained_answer_goes_on_in_another_life(engine: MLXEngine, cut: int) -> None:
    for make in (schema, lambda name, **knobs: asked(name, "lark", LARK, **knobs)):
        request = make("r", temperature=1.5, seed=21)
        whole = run(engine, request)
        before = whole.chunks["r"][:cut]
        if before[-1][4] is not None:
            continue
        resumed = replace(request, resume=tuple(token for chunk in before for token in chunk[2]))
        after = run(engine, resumed, chat("x", TEXTS[1])).chunks["r"]
        assert "".join(chunk[1] for chunk in before + after) == whole.text("r")
        assert after[-1][4] == "stop"


def test_logprobs_of_a_constrained_answer_are_what_the_model_thought(engine: MLXEngine) -> None:
    """The mask changes the choice, so the chosen token need not be the likeliest one."""
    answers = run(engine, schema("r", logprobs=2))
    first = answers.chunks["r"][0][3]
    assert first is not None
    token, _, logprob, likeliest = first[0]
    assert token not in {other for other, _, _ in likeliest}
    assert logprob < likeliest[0][2]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"not": {"type": "string"}}', 'Unimplemented keys: \\["not"\\]'),
        ("json_schema", '{"$ref": "#/$defs/x"}', "does not exist"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
        ("regex", "[a-z", "unclosed character class"),
        ("lark", "start: foo", "unknown name"),
        ("lark", "start: start", "cannot be kept to"),
    ],
)
def test_a_bad_constraint_is_refused_before_any_work(engine: MLXEngine, kind: str, text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        engine.add(asked("r", kind, text))
    assert caught.value.field == "constraint"
    assert not engine.has_work()


def test_what_this_engine_cannot_do_is_refused_and_not_ignored(engine: MLXEngine) -> None:
    with pytest.raises(Unsupported, match="inputs") as caught:
        engine.add(Request(request_id="r", model="tiny", inputs=("a text",)))
    assert caught.value.field == "inputs"
