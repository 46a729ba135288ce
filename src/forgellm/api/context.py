"""What the views share: the pool, the settings and the gate of their app. Holds them; does nothing."""

from dataclasses import dataclass

from flask import current_app

from forgellm.api.gate import Gate
from forgellm.api.pool import Pool
from forgellm.config import Settings

EXTENSION = "forgellm"


@dataclass(frozen=True, slots=True)
class Context:
    pool: Pool
    settings: Settings
    gate: Gate


def context() -> Context:
    """The context of the app that serves this request."""
    found = current_app.extensions[EXTENSION]
    assert isinstance(found, Context)  # noqa: S101 - tells mypy what create_app stored
    return found
