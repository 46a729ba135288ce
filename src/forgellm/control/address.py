"""Where a daemon is, as users write it: `unix:///path/control.sock`, `tls://host:port`. Connects nothing itself."""

from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from forgellm.control.link import Link
from forgellm.control.tls import TlsAddress
from forgellm.control.unix import UnixAddress
from forgellm.errors import ConfigError


class Address(Protocol):
    """A way to a daemon. str() is what parse() reads."""

    def dial(self) -> Link:
        """A connection with the handshake done. Raises SupervisorUnavailable, VersionSkew, or what the daemon says."""


def parse(text: str, machines_path: Path) -> Address:
    """The address that `text` stands for; `machines_path`: who this machine is paired with. Raises ConfigError."""
    parts = urlsplit(text)
    if parts.scheme == "tls" and parts.path in {"", "/"}:
        return parse_place(parts.netloc, machines_path)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return UnixAddress(Path(unquote(parts.path)))
    raise ConfigError(
        f"{text} is no address of a daemon; write unix:///path/control.sock or tls://host:port", field="connect"
    )


def parse_place(text: str, machines_path: Path) -> TlsAddress:
    """`host:port` or `[IPv6]:port`, as an address. Raises ConfigError."""
    try:
        parts = urlsplit(f"tls://{text}")
        if parts.hostname and parts.port and parts.netloc == text and "@" not in text:
            return TlsAddress(parts.hostname, parts.port, machines_path)
    except ValueError:
        pass  # as anything else that is no address
    raise ConfigError(f"{text} is no address of a daemon on another machine; write host:port", field="connect")
