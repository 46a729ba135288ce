"""What a dialect is: its routes, described well enough to print them, and the shape of its errors. Data only.

How to add one, say "acme":

1. `api/schemas/acme.py`: one `Body` struct a route. Every field that acme's clients send is a field here, annotated
   with what becomes of it (`honoured`, `no_effect`, `only`, `refused`); `to_requests()` makes messages.Request of it.
   What a response holds are structs too.
2. `api/acme.py`: a Flask blueprint. A view decodes (`read(Body)`), submits (`answers.begin(requests, names)`), and
   encodes: whole from `answers.pieces()`, or streamed by a generator of frames over `answers.batches()`, given to
   `answers.stream()` with what an error after the first byte looks like. It ends with `DIALECT = Dialect(...)`: the
   blueprint, the paths whose errors are in acme's envelope, and an Operation for each route.
3. Its line in `DIALECTS` of api/app.py, and those of its routes in `SCOPES` of api/auth.py. docs/parameters.md (`make
   docs`), /openapi.json and the tests of tests/api/test_params.py, which ask for an example of every field, follow by
   themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
from flask import Blueprint, request

from forgellm.api.errors import Problem
from forgellm.api.schemas import Body

_B = TypeVar("_B", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route. `path` is OpenAPI's form ("/v1/models/{model}"); `body` None: it takes none.

    `answer` is what a 200 holds as JSON; `event` the object of one event of its stream, `stream_types` the media types
    that a client may ask for it as. `statuses`: the errors it may answer with, besides those that every route may.
    `query`: its text parameters.
    """

    method: Literal["get", "post", "delete"]
    path: str
    says: str
    body: type[Body] | None = None
    answer: type[msgspec.Struct] | None = None
    event: type[msgspec.Struct] | None = None
    stream_types: tuple[str, ...] = ("text/event-stream",)
    statuses: tuple[int, ...] = ()
    query: tuple[str, ...] = ()
    is_body_optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A family of routes for one kind of client. `paths`: errors below them look as `error_body` draws them, which is
    what the struct `error` describes."""

    name: str
    blueprint: Blueprint
    paths: tuple[str, ...]
    error_body: Callable[[Problem], dict[str, Any]]
    error: type[msgspec.Struct]
    operations: tuple[Operation, ...]


def read(cls: type[_B], *, is_optional: bool = False) -> _B:
    """The checked body of the HTTP request that is being served. Raises InvalidRequest.

    `is_optional`: a request without a body has all the defaults."""
    raw = request.get_data()
    if is_optional and not raw:
        return cls()
    return cls.decode(raw, request.content_type, request.content_encoding)
