"""What an answer must look like, as one grammar for llguidance: reasoning, a constraint's text, calls of functions.

Compiles nothing and knows no tokens. What could keep a compiler busy for seconds, or overflow its stack, is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from forgellm.errors import InvalidRequest
from forgellm.messages import Constraint, Tools
from forgellm.worker.answer import Thinking
from forgellm.worker.tools import ToolFormat, name_of, parameters_of

MAX_BYTES = 64 << 10
"""Of a schema, regex or grammar."""

MAX_REFS = 256
"""llguidance follows references on the stack: a chain of 1,000 in a schema overflows its 8 MiB (measured)."""

MAX_RULES = 512
"""The same in Lark: a chain of 3,000 rules overflows it (measured). Counted as colons: each rule has one."""

MAX_MULTIPLE = 1000
"""An automaton of that many states for each multipleOf: 100,003 takes a quarter of a second, 1,000,003 four."""

MAX_MULTIPLES = 20_000
"""All of them together."""

_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.0-9eE]+)')
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")

# One line, spaces where json.dumps puts them: with free white space, a model at a high temperature writes nothing else.
# No \\uXXXX, with which a model could write the same key twice. A schema must not ask for its keywords to be ignored.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
}


# In Lark: any text up to a mark is a lazy terminal, which ends with the first mark it meets.
_COMMON = """%llguidance {}
TEXT: /(.|\\n)*/
LINES: /\\n{1,2}/
"""


@dataclass(frozen=True, slots=True)
class Calls:
    """Which calls an answer may hold, and how they are marked. `with_schemas` false: with any arguments."""

    tools: Tools
    form: ToolFormat
    with_schemas: bool


def grammar(constraint: Constraint | None, calls: Calls | None, thinking: Thinking, marks: tuple[str, str]) -> str:
    """The grammar of an answer, in llguidance's JSON form. `marks`: around reasoning. Raises InvalidRequest.

    Calls that must be made stand alone; else the answer is calls, or what the constraint says, or with no constraint
    any text and calls."""
    rules = [] if constraint is None else [rule("answer", constraint)]
    lark = _COMMON
    body = "@answer"
    if calls is not None:
        lark += _calls_in_lark(calls)
        rules += _arguments(calls)
        is_free = constraint is None and calls.tools.choice == "auto"
        body = "free" if is_free else "calls" if calls.tools.choice != "auto" else "(@answer | calls)"
    if thinking == "is":
        body = f"thought {body}"
    elif thinking == "may" and body == "free" and calls is not None:
        lark += _first_in_lark(json.dumps(marks[0]), calls)
        body = "THINK thought free | first"
    elif thinking == "may":
        body = f"({json.dumps(marks[0])} thought)? {body}"
    if thinking != "never":
        lark += f"thought: thought_end LINES?\nthought_end[lazy]: TEXT {json.dumps(marks[1])}\n"
    return json.dumps({"grammars": [{"name": "top", "lark_grammar": f"{lark}start: {body}\n"}, *rules]})


def _calls_in_lark(calls: Calls) -> str:
    """`calls`: one after the other, nothing else. `free`: calls with any text between them, and around."""
    start, end = json.dumps(calls.form.start), json.dumps(calls.form.end) if calls.form.end else ""
    is_one = _is_one(calls.tools)
    names = [json.dumps(name_of(tool), ensure_ascii=False) for tool in _callable(calls.tools)]
    heads = [json.dumps(f'{{"name": {name}, "arguments": ', ensure_ascii=False) for name in names]
    functions = " | ".join(f'{head} @arguments_{place} "}}"' for place, head in enumerate(heads))
    return f"""call: LINES? ({functions}) LINES? {end}
calls: {start} call {"" if is_one else f"(LINES? {start} call)*"}
begun[lazy]: TEXT {start}
free: {"begun call | rest" if is_one else "(begun call)* rest"}
rest: TEXT
"""


def _first_in_lark(mark: str, calls: Calls) -> str:
    """`first`: `free` that does not begin with reasoning, so that a mark of calls in a thought begins no call."""
    return f"""THINK: /\\s*/ {mark}
OTHER: TEXT & ~(THINK TEXT)
first_begun[lazy]: OTHER {json.dumps(calls.form.start)}
first: first_begun call {"" if _is_one(calls.tools) else "free"} | OTHER
"""


def _is_one(tools: Tools) -> bool:
    return tools.choice == "named" or not tools.parallel


def _callable(tools: Tools) -> list[Mapping[str, Any]]:
    return [tool for tool in tools.functions if tools.choice != "named" or name_of(tool) == tools.name]


def _arguments(calls: Calls) -> list[dict[str, Any]]:
    """What each function's arguments look like. What a schema says beyond what can be kept to is not an error: it is
    written for the model to read, by people who never thought of a grammar."""
    options = {**_JSON_OPTIONS, "lenient": True}
    found = []
    for place, tool in enumerate(_callable(calls.tools)):
        schema = parameters_of(tool) if calls.with_schemas else {"type": "object"}
        found.append(schema_rule(f"arguments_{place}", schema, "tools", options))
    return found


def rule(name: str, constraint: Constraint) -> dict[str, Any]:
    """One named grammar of llguidance's list. Raises InvalidRequest."""
    _bounded(constraint.text, "constraint")
    match constraint.kind:
        case "json_schema":
            return schema_rule(name, _parsed(constraint.text), "constraint")
        case "json_object":
            return schema_rule(name, {"type": "object"}, "constraint")
        case "regex":
            return {"name": name, "lark_grammar": f"start: /{_slashed(constraint.text)}/"}
        case "lark":
            _check_size(constraint.text, "constraint")
            if constraint.text.count(":") > MAX_RULES:
                raise InvalidRequest(f"constraint: a grammar takes at most {MAX_RULES} colons", field="constraint")
            return {"name": name, "lark_grammar": constraint.text}


def schema_rule(
    name: str, schema: dict[str, Any], field: str, options: dict[str, Any] = _JSON_OPTIONS
) -> dict[str, Any]:
    """One named grammar from a JSON schema. Raises InvalidRequest."""
    text = json.dumps(schema, ensure_ascii=False)
    _bounded(text, field)
    _check_size(text, field)
    return {"name": name, "json_schema": {**schema, "x-guidance": options}}


def _parsed(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"constraint: the schema is not JSON: {error}", field="constraint") from error
    except RecursionError as error:
        raise InvalidRequest("constraint: the schema is nested too deeply", field="constraint") from error
    if not isinstance(schema, dict):
        raise InvalidRequest("constraint: the schema must be a JSON object", field="constraint")
    return schema


def _bounded(text: str, field: str) -> None:
    size = len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise InvalidRequest(f"{field} has {size} bytes; at most {MAX_BYTES} are taken", field=field)


def _check_size(text: str, field: str) -> None:
    """Refuse what compiles for seconds or overflows the compiler's stack, in JSON or in Lark that holds JSON."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    if text.count('"$ref"') > MAX_REFS:
        raise InvalidRequest(f"{field} has more than {MAX_REFS} $ref; write some of them out", field=field)
    multiples = [_digits(found) for found in _MULTIPLE.findall(text)]
    if max(multiples, default=0) > MAX_MULTIPLE or sum(multiples) > MAX_MULTIPLES:
        raise InvalidRequest(
            f"{field}: multipleOf takes at most {MAX_MULTIPLE} (without its decimal point), and all of them together "
            f"{MAX_MULTIPLES}",
            field=field,
        )


def _digits(number: str) -> int:
    """A multipleOf without its decimal point, which is the number of states it takes: 2.5 is 25."""
    try:
        _, digits, exponent = Decimal(number).as_tuple()
    except InvalidOperation:
        return 0  # not a number: the compiler says so
    value = int("".join(map(str, digits)) or "0")
    return value * 10 ** min(int(exponent), 9) if isinstance(exponent, int) and exponent > 0 else value


def _slashed(regex: str) -> str:
    """A regex between the slashes of a Lark terminal."""
    return regex.replace("/", r"\/").replace("\n", r"\n").replace("\r", r"\r")
