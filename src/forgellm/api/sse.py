"""Server-sent events: how a value becomes a frame. Knows no dialect.

A value is always encoded as JSON, whose strings hold no raw line break: no text of a model can end its frame, or begin
another one.
"""

from typing import Any

import msgspec

MIMETYPE = "text/event-stream"
PING = b": ping\n\n"


def frame(value: Any, event: str | None = None) -> bytes:
    """One event with `value` as JSON, under the name `event` if the dialect names its events."""
    name = b"" if event is None else b"event: " + event.encode("ascii") + b"\n"
    return name + b"data: " + msgspec.json.encode(value) + b"\n\n"
