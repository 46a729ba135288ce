"""Two hundred schemas at random, answered by a random model at a high temperature: every finished answer is valid."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from test_mlx_engine import chat, run

import tiny_model
from forgellm.messages import Constraint, Request
from forgellm.worker.mlx_engine import MLXEngine
from random_schemas import schema

pytestmark = pytest.mark.model

SCHEMAS = 200
MAX_TOKENS = 700


@pytest.fixture(scope="module")
def engine(load_engine: Callable[..., MLXEngine], tmp_path_factory: pytest.TempPathFactory) -> MLXEngine:
    folder: Path = tiny_model.build(tmp_path_factory.mktemp("wide"), context=2048)
    return load_engine(folder, prefix_cache_bytes=0)


def asked(number: int) -> Request:
    constraint = Constraint(kind="json_schema", text=json.dumps(schema(number)))
    request = chat(str(number), f"number {number}", temperature=1.5, seed=number, max_tokens=MAX_TOKENS)
    return replace(request, constraint=constraint)


def test_every_finished_answer_to_a_random_schema_is_valid(engine: MLXEngine) -> None:
    """One cut off by max_tokens says "length", and there are few."""
    answers = run(engine, *map(asked, range(SCHEMAS)))
    assert answers.failures() == []
    ends = {number: answers.last(str(number))[4] for number in range(SCHEMAS)}
    for number, end in ends.items():
        if end == "stop":
            check = jsonschema.Draft202012Validator.FORMAT_CHECKER
            validator = jsonschema.Draft202012Validator(schema(number), format_checker=check)
            validator.validate(json.loads(answers.text(str(number))))
        else:
            assert (end, len(answers.tokens(str(number)))) == ("length", MAX_TOKENS)
    assert sum(end == "stop" for end in ends.values()) > 0.97 * SCHEMAS


def test_the_schemas_are_of_every_kind() -> None:
    text = json.dumps([schema(number) for number in range(SCHEMAS)])
    words = ("$ref", "anyOf", "enum", "const", "pattern", "format", "minItems", "minimum", "multipleOf", "tree")
    assert all(text.count(f'"{word}"') > 10 for word in words)
