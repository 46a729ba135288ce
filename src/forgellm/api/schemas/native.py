"""What the routes of ForgeLLM's own answer, as far as /openapi.json describes it. Data only."""

import msgspec


class Error(msgspec.Struct, kw_only=True):
    """`code` is one of the stable codes of docs/http-api.md; `field` names the field."""

    error: str
    code: str
    success: bool = False
    field: str | msgspec.UnsetType = msgspec.UNSET


class Line(msgspec.Struct, kw_only=True):
    """One line of a stream: a `chunk` with its text, then `complete` with the counts, or `error`."""

    type: str
