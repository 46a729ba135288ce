"""What the app asks of the server that runs it: whether a client has left, and that it can stream at all.

Knows waitress and gunicorn by what they leave in sight; must not import either.
"""

import select
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from forgellm.errors import ConfigError

_SYNC, _THREADS = "gunicorn.workers.sync", "gunicorn.workers.gthread"


def refuse_sync_workers() -> None:
    """Raise ConfigError in a gunicorn whose workers serve one request at a time.

    Such a worker is killed when a stream takes longer than its timeout, and answers nobody else meanwhile. gunicorn
    loads the module of its worker class before the app, and no other one."""
    if _SYNC in sys.modules and _THREADS not in sys.modules:
        raise ConfigError(
            "gunicorn's sync workers serve one request at a time and are killed in mid-stream at --timeout; "
            "run it with --worker-class gthread --threads 32"
        )


def client_gone(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Tells whether the connection of a request is closed; never, where the server does not let one look."""
    asks: Callable[[], bool] | None = environ.get("waitress.client_disconnected")
    if asks is not None:
        return asks
    sock = environ.get("gunicorn.socket")
    return (lambda: _has_left(sock)) if isinstance(sock, socket.socket) else (lambda: False)


def _has_left(sock: socket.socket) -> bool:
    """Whether the peer has closed its end; what it may have sent meanwhile (a next request) is left where it is."""
    try:
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        if not poller.poll(0):
            return False
        # The plain socket's recv, for that of TLS takes no flags: bytes or an end, in clear or not, are all to know.
        return socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except (OSError, ValueError):  # reset, or closed on our side
        return True
