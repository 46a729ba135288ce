"""The table of parameters: every field of every route, and what becomes of it. Holds no words of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from forgellm.api.dialect import Dialect
from forgellm.api.schemas import Body, Param, params_of


@dataclass(frozen=True, slots=True)
class Row:
    """One field of one route of one dialect."""

    dialect: str
    method: str
    path: str
    body: type[Body]
    param: Param


def rows(dialects: Sequence[Dialect]) -> Iterator[Row]:
    """All rows, in the order of the dialects, their routes and their fields."""
    for dialect in dialects:
        for operation in dialect.operations:
            if operation.body is None:
                continue
            for param in params_of(operation.body).values():
                yield Row(dialect.name, operation.method.upper(), operation.path, operation.body, param)


def markdown(dialects: Sequence[Dialect]) -> str:
    """The rows as one table a route."""
    lines: list[str] = []
    title = None
    for row in rows(dialects):
        heading = f"## {row.dialect}: {row.method} {row.path}"
        if heading != title:
            title = heading
            lines += ["", heading, "", "| field | becomes | |", "|---|---|---|"]
        lines.append(_line(row.param))
        part = row.body.PARTS.get(row.param.name)
        if part is not None:
            lines += [_line(param, f"{row.param.name}.") for param in params_of(part).values()]
    return "\n".join(lines[1:])


def _line(param: Param, place: str = "") -> str:
    return f"| `{place}{param.name}` | {_verdict(param)} | {param.says} |"


def _verdict(param: Param) -> str:
    if param.verdict == "only":
        return f"only `{msgspec.json.encode(param.value).decode()}`"
    return param.verdict
