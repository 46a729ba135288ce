"""Bodies of the `/api/admin/*` routes: what each may hold. Calls nothing."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from forgellm.api.schemas.body import Body, Name, honoured
from forgellm.errors import InvalidRequest
from forgellm.messages import TimeoutSeconds


class ReloadBody(Body, frozen=True, kw_only=True):
    """POST /api/admin/reload; the body may be missing."""

    dry_run: Annotated[bool, honoured("true: say what would change, and change nothing")] = False


class DrainBody(Body, frozen=True, kw_only=True):
    """POST /api/admin/drain; the body may be missing."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model_name": "model"}

    model: Annotated[Name | None, honoured("which model; the whole pool without")] = None
    timeout_s: Annotated[TimeoutSeconds | None, honoured("how long running requests may go on")] = None
    resume: Annotated[bool, honoured("true: take requests again")] = False

    def __post_init__(self) -> None:
        if self.resume and self.timeout_s is not None:
            raise InvalidRequest("`timeout_s` means nothing with `resume`; leave one of them out", field="timeout_s")
