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


class Happened(msgspec.Struct, kw_only=True):
    """The data of one event of `/api/events`: a `snapshot` has `models`; `state`, `death`, `eviction` and `progress`
    have the `model`, and what docs/operations.md says of each; `end` has the reason."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType | None = msgspec.UNSET
