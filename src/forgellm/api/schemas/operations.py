"""Bodies of the `/api/admin/*` routes: what each may hold. Calls nothing."""

from collections.abc import Mapping
from typing import ClassVar

from forgellm.api.schemas.body import Body, Name
from forgellm.errors import InvalidRequest
from forgellm.messages import TimeoutSeconds


class ReloadBody(Body, frozen=True, kw_only=True):
    """POST /api/admin/reload; the body may be missing."""

    dry_run: bool = False


class DrainBody(Body, frozen=True, kw_only=True):
    """POST /api/admin/drain; the body may be missing."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model_name": "model"}

    model: Name | None = None
    timeout_s: TimeoutSeconds | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.timeout_s is not None:
            raise InvalidRequest("`timeout_s` means nothing with `resume`; leave one of them out", field="timeout_s")
