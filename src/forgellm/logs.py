"""How the program's log lines look: for people, or one JSON object a line. Must not decide what is logged.

What a line knows beyond its words travels as `extra={"data": {...}}`: fields of the JSON object, absent from the text.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from forgellm.config import Settings

HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, `exception` if there is one, and the line's own data."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "data", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class HumanFormatter(logging.Formatter):
    """One line a record, whatever a client managed to get into a message; tracebacks follow below it."""

    def __init__(self) -> None:
        super().__init__(HUMAN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging's own hook
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r").replace("\x1b", "\\x1b")


def set_up(settings: Settings, stream: TextIO | None = None) -> None:
    """Log to `stream` (default: stderr) from now on, as `log_level` and `log_format` say; replaces what was there."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_formatter(settings.log_format))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)


def _formatter(wanted: Literal["human", "json"]) -> logging.Formatter:
    return JsonFormatter() if wanted == "json" else HumanFormatter()
