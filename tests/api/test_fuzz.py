"""A hundred thousand bodies that nobody would send: each is taken, or refused as the caller's mistake."""

import random
import sys
from typing import Any

import msgspec
import pytest
from test_params import MODULES

from forgellm.api import params
from forgellm.api.app import DIALECTS
from forgellm.api.schemas import Body, GenerateBody, LoadBody, UnloadBody
from forgellm.errors import ForgeLLMError, InvalidRequest

pytestmark = pytest.mark.process  # it takes seconds, not milliseconds

INPUTS = 100_000

_JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64 - 1, 0.5, -0.0, 1e308, -1e-308, float(2**53)),
    *(
        "",
        "x",
        "auto",
        "required",
        "type",
        "\x00",
        "\u2028",
        "🙂",
        "日本",
        "x" * 300,
        "{}",
        "[",
        '{"a":',
        "1",
        "-5",
        "\\",
    ),
    *([], [None], [0], ["x"], [[]], [[[]]], [1, "x"], [1, [2]], [{}], {}, {"": None}, {"x": {}}, {"type": "text"}),
    *({"type": "json_schema"}, {"type": "function"}, {"type": []}, {"role": "user"}, {"1": 2}, {"1": "x"}, {"-1": 0}),
    *([{"role": "tool", "content": None}], [{"type": "image_url"}], {"function": {"name": "f"}, "type": "function"}),
]
JUNK = [msgspec.json.encode(each) for each in _JUNK]


def seeds() -> list[tuple[type[Body], list[bytes]]]:
    """By body: complete ones, as JSON, with every field that is not refused in some of them."""
    found: dict[type[Body], list[Any]] = {
        GenerateBody: [{"prompt": "hi", "history": [{"role": "user", "content": "x"}], "stop": ["a"], "seed": 1}],
        LoadBody: [{"model": "m", "wait": True, "ttl_s": 1, "replicas": 2}],
        UnloadBody: [{"model_name": "m", "force": True}],
    }
    for row in params.rows(DIALECTS):
        if row.dialect not in MODULES:
            continue
        examples = MODULES[row.dialect]
        base = examples.BASE[row.body]
        name = row.param.name
        if row.param.verdict == "honoured":
            also = examples.NEEDS.get((row.body, name), {})
            found.setdefault(row.body, [base]).append({**base, **also, name: examples.HONOURED[row.body][name][0]})
        elif row.param.verdict == "refused":
            found.setdefault(row.body, [base]).append({**base, name: None})
    return [(body, [msgspec.json.encode(each) for each in each_of]) for body, each_of in found.items()]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found.append((value, key))
        found += places(inner)
    return found


def junk(chance: random.Random) -> Any:
    return msgspec.json.decode(chance.choice(JUNK))  # of its own: what holds it is changed further


def refusal(body: type[Body], raw: bytes) -> ForgeLLMError | None:
    """How the body is refused; None if it is taken."""
    try:
        found = body.decode(raw, "application/json")
        if hasattr(found, "to_requests"):
            found.to_requests()
    except ForgeLLMError as error:
        return error
    return None


def mutated(chance: random.Random, raw: bytes) -> bytes:
    if chance.random() < 0.15:  # the bytes
        at = chance.randrange(len(raw))
        piece = chance.choice([b"", b"\xff", b"\x00", b'"', b"[", b"}", b"\\ud800", b"1e999", b"NaN", raw[:at]])
        return raw[:at] + piece + raw[at + chance.randrange(3) :]
    value = msgspec.json.decode(raw)  # a copy of its own
    for _ in range(chance.choice([1, 1, 2, 4])):
        container, key = chance.choice(places(value) or [(value, "x")])
        what = chance.random()
        if what < 0.7:
            container[key] = junk(chance)
        elif what < 0.8 and isinstance(container, dict):
            container[chance.choice(["x", "type", "content", "stream", "model"])] = junk(chance)
        elif what < 0.9 and isinstance(container, dict):
            container.pop(key, None)
        else:
            inner = container[key] if isinstance(container, list) else container.get(key)
            container[key] = chance.choice([[inner, inner], {"x": inner}])
    return msgspec.json.encode(value)


@pytest.mark.parametrize(("body", "good"), seeds(), ids=lambda each: getattr(each, "__name__", ""))
def test_anything_is_taken_or_refused_as_the_callers_mistake(body: type[Body], good: list[bytes]) -> None:
    number = random.randrange(sys.maxsize)
    print(f"seed {number}")
    chance = random.Random(number)
    taken = refused = 0
    for _ in range(INPUTS // len(seeds())):
        raw = mutated(chance, chance.choice(good))
        error = refusal(body, raw)
        if error is None:
            taken += 1
        else:
            assert isinstance(error, InvalidRequest), raw
            refused += 1
    assert taken
    assert refused
