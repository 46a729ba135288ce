"""Serves the app with waitress, in threads of this process. Knows sockets; knows no routes and no models.

The settings are measured ones: see docs/decisions. The one thing waitress lacks is added here: it closes connections
that send a request, or take an answer, too slowly.
"""

import contextlib
import errno
import math
import os
import resource
import socket
import threading
import time
from typing import Any

import psutil
from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher

from forgellm.api.auth import require_keys
from forgellm.api.errors import Problem, drawn, json_response
from forgellm.api.gate import Gate
from forgellm.api.security import is_loopback
from forgellm.config import Settings
from forgellm.errors import AddressInUse, ConfigError, StartupError

QUICK_THREADS = 16  # beyond those that streams may hold: status and health always find one
HEADER_TIMEOUT_S = 10.0
MIN_BODY_BYTES_PER_S = 10_000
SLOW_CONSUMER_TIMEOUT_S = 30.0
ACCEPT_PAUSE_S = 0.1
CONNECTIONS = 4096
FILES_PER_CONNECTION_ROOM = 256  # file descriptors left for workers, logs and the rest

_REFUSAL = b'{"success": false, "error": "too many connections: no file descriptor is left", "code": "unavailable"}'
_NO_DESCRIPTOR = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_REFUSAL), _REFUSAL)
)
_WORDS = {400: "invalid_request", 413: "payload_too_large", 431: "invalid_request"}


class HttpServer:
    """One listening socket and its threads. bind(), start(), then stop(); each once."""

    def __init__(self, app: Flask, settings: Settings, gate: Gate) -> None:
        self._app = app
        self._settings = settings
        self._gate = gate
        self._socket: socket.socket | None = None
        self._address: tuple[str, int] | None = None
        self._server: _Server | None = None
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
            listener.listen(1024)
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
        settings = self._settings
        adjustments = Adjustments(
            sockets=[self._socket],
            threads=settings.max_streams + QUICK_THREADS,
            channel_request_lookahead=1,  # keeps reading while it answers: how a disconnect is noticed
            asyncore_use_poll=True,
            max_request_body_size=settings.max_request_bytes + 1,  # waitress refuses from this size on
            outbuf_high_watermark=1 << 20,
            connection_limit=_connection_limit(),
            cleanup_interval=1,
            ident="forgellm",
        )
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(adjustments.threads)
        self._server = _Server(self._app, self._socket, dispatcher, adjustments)
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


class _JsonErrorTask(ErrorTask):  # type: ignore[misc]
    """What waitress itself refuses (a bad request line, a body too large), in the API's own shape."""

    def execute(self) -> None:
        error = self.request.error
        code = _WORDS.get(error.code, "internal_error" if error.code >= 500 else "invalid_request")
        problem = Problem(error.code, code, f"{error.reason}: {error.body}")
        app, path = self.channel.server.flask_app, getattr(self.request, "path", "")  # no path: a bad request line
        body = json_response(drawn(app, path, problem)).get_data()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. Remembers when the request that is coming in began."""

    error_task_class = _JsonErrorTask
    incoming_since = 0.0
    _active_at = 0.0

    @property
    def last_activity(self) -> float:
        """Monotonic, whatever waitress sets it to: the wall's clock may be moved."""
        return self._active_at

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        self._active_at = time.monotonic()

    def received(self, data: bytes) -> Any:
        if self.request is None:
            self.incoming_since = time.monotonic()
        return super().received(data)

    def is_too_slow(self, now: float) -> bool:
        """Whether the peer has had long enough to send this request, or to take some of its answer."""
        incoming = self.request
        if incoming is not None:
            allowed = HEADER_TIMEOUT_S + incoming.body_bytes_received / MIN_BODY_BYTES_PER_S
            if now - self.incoming_since > allowed:
                return True
        return bool(self.total_outbufs_len) and now - self.last_activity > SLOW_CONSUMER_TIMEOUT_S


class _Server(TcpWSGIServer):  # type: ignore[misc]
    """waitress's server over a socket that listens already."""

    channel_class = _Channel

    def __init__(self, app: Flask, sock: socket.socket | None, dispatcher: Any, adjustments: Any) -> None:
        assert sock is not None  # noqa: S101 - for mypy: start() has bound it
        self.flask_app = app  # waitress wraps what it calls `application`
        info = (sock.family, sock.type, sock.proto, sock.getsockname())
        self.next_channel_cleanup = math.inf  # waitress never does it by its clock: run() does, by ours
        self._deaf_until = 0.0
        self._last_resort: int | None = os.open(os.devnull, os.O_RDONLY)
        super().__init__(app, {}, True, sock, dispatcher=dispatcher, adj=adjustments, bind_socket=False, sockinfo=info)

    def run(self) -> None:
        """Serve until every socket is closed. Slow peers are cut off between two turns of the loop: within one, events
        may be pending for their descriptors, whose numbers the next connections get."""
        next_cleanup = 0.0
        while self._map:
            now = time.monotonic()
            if now >= next_cleanup:
                next_cleanup = now + self.adj.cleanup_interval
                self.maintenance(now)
            wasyncore.loop(self.adj.asyncore_loop_timeout, self.adj.asyncore_use_poll, self._map, count=1)

    def readable(self) -> bool:
        """Whether to look for new connections; called at each turn of the loop."""
        return time.monotonic() >= self._deaf_until and bool(super().readable())

    def accept(self) -> tuple[socket.socket, Any] | None:
        """A connection. Without a descriptor for it, its client is told so and sent away, and this says None."""
        try:
            found: tuple[socket.socket, Any] | None = super().accept()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            self._turn_away()
            return None
        return found

    def _turn_away(self) -> None:
        """One descriptor is kept for this. Should somebody else have got it meanwhile, a pause: the loop would spin."""
        if self._last_resort is not None:
            os.close(self._last_resort)
        try:
            sock, _ = self.socket.accept()
            with sock:
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.recv(1 << 16)  # what is unread at the end would make it a reset
                sock.send(_NO_DESCRIPTOR)
        except OSError:
            self._deaf_until = time.monotonic() + ACCEPT_PAUSE_S
        try:
            self._last_resort = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            self._last_resort = None

    def close(self) -> None:
        if self._last_resort is not None:
            os.close(self._last_resort)
            self._last_resort = None
        super().close()

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if channel.is_too_slow(now):
                channel.will_close = True
                channel.handle_close()  # at once: a socket that takes no bytes is never reported as writable

    def finish(self, deadline: float) -> None:
        """Wait until what is buffered is written, at most until `deadline`, then close every socket; run() returns."""
        while time.monotonic() < deadline and any(c.total_outbufs_len for c in list(self.active_channels.values())):
            time.sleep(0.01)
        self.trigger.pull_trigger(lambda: wasyncore.close_all(self._map))  # by the loop's own thread


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
    """How many connections the file descriptor limit allows, after raising it as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + FILES_PER_CONNECTION_ROOM
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
            soft = max(soft, raised)
        except (ValueError, OSError):
            pass  # macOS has a lower ceiling than it says; the old limit stays
    return min(CONNECTIONS, max(64, soft - FILES_PER_CONNECTION_ROOM))
