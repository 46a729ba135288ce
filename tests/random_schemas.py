"""JSON schemas at random: nested, with enums, patterns, references, arrays, bounds and choices.

Every text and list has a bound, so that a random model's answer has one too.
"""

import random
from typing import Any

Schema = dict[str, Any]

PATTERNS = ("^[a-z]{2,5}$", "^[A-Z][0-9]{3}$", "^(red|green|blue)-[0-9]{1,2}$", r"^\d{4}-\d{2}$", '^[^"\\\\]{1,6}$')
ENUM = ("fox", "dog", "naïve 🙂", 'a "quoted" one', 3, -1.5, True, None)
NAMES = ("name", "age", "größe", "kind of", "x", "$id_", "items", "value/unit")


def schema(seed: int) -> Schema:
    """The schema of one seed; its root is an object, as the APIs ask for."""
    rng = random.Random(seed)
    defs = {f"d{i}": _leaf(rng) if i else _object(rng, 1, []) for i in range(rng.randrange(3))}
    if rng.random() < 0.2:
        defs["tree"] = {
            "type": "object",
            "properties": {"leaf": _leaf(rng), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
            "required": ["leaf", "next"],
            "additionalProperties": False,
        }
    root = _object(rng, rng.randrange(1, 4), list(defs))
    return {**root, "$defs": defs} if defs else root


def _any(rng: random.Random, depth: int, refs: list[str]) -> Schema:
    kinds = ["leaf", "leaf", "leaf"] + ["object", "array", "choice"] * (depth > 0) + ["ref", "ref"] * bool(refs)
    match rng.choice(kinds):
        case "object":
            return _object(rng, depth - 1, refs)
        case "array":
            fewest = rng.randrange(2)
            items = _any(rng, depth - 1, refs)
            return {"type": "array", "items": items, "minItems": fewest, "maxItems": fewest + rng.randrange(3)}
        case "choice":
            return {"anyOf": [_any(rng, depth - 1, refs) for _ in range(rng.randrange(2, 4))]}
        case "ref":
            return {"$ref": f"#/$defs/{rng.choice(refs)}"}
        case _:
            return _leaf(rng)


def _object(rng: random.Random, depth: int, refs: list[str]) -> Schema:
    names = rng.sample(NAMES, rng.randrange(1, 4))
    return {
        "type": "object",
        "properties": {name: _any(rng, depth, refs) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _leaf(rng: random.Random) -> Schema:
    low = rng.randrange(-1000, 1000)
    return rng.choice(
        [
            {"type": "string", "maxLength": rng.randrange(12)},
            {"type": "string", "minLength": 2, "maxLength": 6},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
            {"enum": rng.sample(ENUM, 3)},
            {"const": rng.choice(ENUM)},
            {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)},
            {"type": "integer", "exclusiveMinimum": low, "maximum": low + 10, "multipleOf": rng.choice([1, 2, 5])},
            {"type": "number", "minimum": low / 8, "maximum": low / 8 + rng.random()},
            {"type": ["boolean", "null"]},
        ]
    )
