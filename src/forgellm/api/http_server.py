"""Serves the app with waitress, in threads of this process: takes the address, starts, stops. Knows no routes.

The settings are measured ones: see docs/decisions.
"""

import errno
import resource
import socket
import sys
import threading
import time

import psutil
from flask import Flask
from waitress.adjustments import Adjustments

from forgellm.api.auth import require_keys
from forgellm.api.connections import Server
from forgellm.api.gate import Gate
from forgellm.api.security import is_loopback
from forgellm.config import Settings
from forgellm.errors import AddressInUse, ConfigError, StartupError

QUICK_THREADS = 16  # beyond those that streams may hold: status and health always find one
DESCRIPTORS = 10_240  # as many as macOS lets a process have
OTHER_DESCRIPTORS = 256  # for workers, logs and the rest


class HttpServer:
    """One listening socket and its threads. bind(), start(), then stop(); each once."""

    def __init__(self, app: Flask, settings: Settings, gate: Gate) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._socket: socket.socket | None = None
        self._address: tuple[str, int] | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) it listens on; the port is the real one when the settings say 0."""
        if self._address is None:
            raise StartupError("the server is not bound to an address yet")
        return self._address

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def bind(self) -> None:
        """Take the address; clients may connect, and are served from start() on.

        Raises AddressInUse, or ConfigError for an address that is not this machine's own, or that other machines reach
        while there is no API key.
        """
        host, port = self._settings.host, self._settings.port
        if not is_loopback(host):
            require_keys(self._settings)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise ConfigError(f"host {host}: {error.strerror}", field="host") from error
        # IPv4 first: "localhost" is both, and 127.0.0.1 is what most people then type.
        family, kind, _, _, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(sockaddr)
            listener.listen(DESCRIPTORS)  # or as many as the system allows
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"{host}:{port} is in use{_owner(port)}; choose another with --port") from error
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", field="host") from error
        self._socket = listener
        self._address = listener.getsockname()[:2]

    def start(self) -> None:
        """Serve in background threads."""
        if self._socket is None:
            self.bind()
        assert self._socket is not None  # noqa: S101 - tells mypy what bind() has made
        settings = self._settings
        adjustments = Adjustments(
            sockets=[self._socket],
            threads=settings.max_streams + QUICK_THREADS,
            channel_request_lookahead=1,  # keeps reading while it answers: how a disconnect is noticed
            max_request_body_size=settings.max_request_bytes + 1,  # waitress refuses from this size on
            outbuf_high_watermark=1 << 20,
            connection_limit=sys.maxsize,  # waitress would leave those above it waiting; Server tells them
            cleanup_interval=1,
            ident="forgellm",
        )
        self._server = Server(self._app, self._gate, self._socket, _connection_limit(), adjustments)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let running answers say their last line, then close everything. Idempotent."""
        self._gate.close()
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            deadline = time.monotonic() + timeout_s
            self._gate.wait_empty(timeout_s)
            server.task_dispatcher.shutdown(timeout=max(0.1, deadline - time.monotonic()))
            server.finish(deadline)
            thread.join(max(1.0, deadline - time.monotonic()))
        if self._socket is not None:
            self._socket.close()


def _owner(port: int) -> str:
    """Which process listens on `port`, as far as this user may know."""
    try:
        owners = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
        }
    except psutil.Error:
        return ""
    return f" by process {', '.join(map(str, sorted(owners)))}" if owners else ""


def _connection_limit() -> int:
    """How many connections the limit of descriptors allows, after raising it as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (ValueError, OSError):
            pass  # the system has a lower ceiling than it says; the old limit stays
    return max(64, min(soft, DESCRIPTORS) - OTHER_DESCRIPTORS)
