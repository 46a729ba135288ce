"""The body of POST /api/models/pull. Calls nothing."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from forgellm.api.schemas.body import Body, Name, honoured


class PullBody(Body, frozen=True, kw_only=True):
    """POST /api/models/pull."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model_name": "model"}

    model: Annotated[Name, honoured("the repository, ORG/NAME or ORG/NAME@REVISION")]
    revision: Annotated[Name | None, honoured("branch, tag or commit; `main` without")] = None
