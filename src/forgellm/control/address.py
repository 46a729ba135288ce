"""Where a daemon is, as users write it: `unix:///path/control.sock`. Reads the text; connects nothing itself."""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from forgellm.control.link import Link
from forgellm.control.unix import UnixAddress
from forgellm.errors import ConfigError


class Address(Protocol):
    """A way to a daemon. str() is what parse() reads."""

    def dial(self) -> Link:
        """A connection with the handshake done. Raises SupervisorUnavailable, VersionSkew, or what the daemon says."""


def parse(text: str) -> Address:
    """The address that `text` stands for. Raises ConfigError."""
    parts = urlsplit(text)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return UnixAddress(Path(unquote(parts.path)))
    raise ConfigError(f"{text} is no address of a daemon; write unix:///path/control.sock", field="connect")
