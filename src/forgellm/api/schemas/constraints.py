"""What an answer must look like and which tools it may call, from the forms in which clients say it. Calls nothing."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas.body import invalid
from forgellm.errors import InvalidRequest
from forgellm.messages import Constraint, Tools

ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]  # Anthropic's bound; OpenAI's is 64
Choices = Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1, max_length=1000)]

Named = tuple[str, Constraint]
"""A constraint, and the field of the body that asked for it."""

_REGEX_SPECIAL = re.compile(r"[.^$*+?()\[\]{}|\\]")


class Function(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that a model may call; `parameters` is a JSON schema of its arguments. `strict` changes nothing: where
    calls are enforced, they are always exact."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def as_tool(self) -> dict[str, Any]:
        """As messages.Tools holds it, and as chat templates expect it."""
        parameters = {"type": "object", "properties": {}} if self.parameters is None else self.parameters
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


def tools_of(
    functions: Sequence[Function],
    choice: Literal["auto", "none", "required"] | None,
    name: str | None,
    *,
    parallel: bool,
) -> Tools | None:
    """The tools of a request; None without any. `name`: the one to be called, which is looked for among them."""
    if not functions:
        if name is not None or choice == "required":
            raise invalid("tool_choice", "asks for a call, but `tools` has no function")
        return None
    names = [function.name for function in functions]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise invalid("tools", f"has two functions called {twice}")
    if name is not None and name not in names:
        raise invalid("tool_choice", f"names {name}, which is not among `tools`")
    return Tools(
        functions=tuple(function.as_tool() for function in functions),
        choice="named" if name is not None else choice or "auto",
        name=name,
        parallel=parallel,
    )


def json_schema(schema: Mapping[str, Any] | bool) -> Constraint:
    """The answer is JSON that this schema accepts."""
    return Constraint(kind="json_schema", text=msgspec.json.encode(schema).decode())


def json_object() -> Constraint:
    """The answer is a JSON object."""
    return Constraint(kind="json_object")


def one_of(choices: Sequence[str]) -> Constraint:
    """The answer is one of these texts."""
    return Constraint(kind="regex", text="|".join(_REGEX_SPECIAL.sub(r"\\\g<0>", choice) for choice in choices))


def guided(
    field: str, json: Any, regex: str | None, choice: Sequence[str] | None, grammar: str | None
) -> list[tuple[str, Constraint]]:
    """(name, Constraint) of each form that is given; `field` is what their names begin with."""
    found: list[Named] = []
    if json is not None:
        found.append((f"{field}json", json_schema(_schema(f"{field}json", json))))
    if regex is not None:
        found.append((f"{field}regex", Constraint(kind="regex", text=regex)))
    if choice is not None:
        found.append((f"{field}choice", one_of(choice)))
    if grammar is not None:
        found.append((f"{field}grammar", Constraint(kind="lark", text=grammar)))
    return found


def single(found: Sequence[Named]) -> Constraint | None:
    """The one constraint of a request. Raises InvalidRequest if there are several."""
    if len(found) > 1:
        names = " and ".join(f"`{name}`" for name, _ in found)
        raise InvalidRequest(f"{names} exclude each other; give one", field=found[1][0])
    return found[0][1] if found else None


def _schema(field: str, value: Any) -> Any:
    """A JSON schema, which some clients send as text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise invalid(field, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict | bool):
        raise invalid(field, "must be a JSON schema: an object")
    return value
