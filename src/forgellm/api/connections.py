"""The server's connections: which are let in, who is served first, and which are closed. Knows no routes and no models.

waitress reads requests and writes answers. What it lacks is added here: connections that send a request, or take an
answer, too slowly are closed; those that there is no room for are told so; and requests that there is no place for are
refused by the loop that reads them, for thousands of them would keep the threads from it for seconds.
"""

import contextlib
import errno
import math
import os
import socket
import time
from collections import OrderedDict, deque
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

from forgellm.api.errors import Problem, drawn, json_response
from forgellm.api.gate import Gate
from forgellm.api.overload import HAS_NO_PLACE, wants_place
from forgellm.api.sockets import Sockets

HEADER_TIMEOUT_S = 10.0
MIN_BODY_BYTES_PER_S = 10_000
SLOW_CONSUMER_TIMEOUT_S = 30.0
LINGER_S = 2.0  # a peer that was refused has so long to close
NEWEST = 64
ACCEPT_PAUSE_S = 0.1
ACCEPTING_S = 0.01  # of one turn of the loop
MOMENT_S = 0.005  # of one turn, for those to refuse, and for those to cut off

_REFUSAL = b'{"success": false, "error": "this server has no room for one more connection", "code": "unavailable"}'
_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_REFUSAL), _REFUSAL)
)
_WORDS = {400: "invalid_request", 413: "payload_too_large", 431: "invalid_request"}


class _JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
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
        self.channel.has_unread = True
        self.content_length = len(body)
        self.write(body)


class _Request(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request, and whether it is to be refused."""

    has_no_place = False


class _Task(WSGITask):  # type: ignore[misc]  # waitress has no types
    """Has the app answer a request."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        if self.request.has_no_place:
            environ[HAS_NO_PLACE] = True
        return environ


class Connection(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """One connection. Remembers when the request that is coming in began, and tells the loop what threads change.

    `gives_way`: others are read first. Those are who asked for something else than an answer of a model, as probes
    do, and the newest, who have asked for nothing yet."""

    parser_class = _Request
    task_class = _Task
    error_task_class = _JsonErrorTask
    incoming_since = 0.0
    gives_way = False
    _active_at = 0.0
    has_unread = False
    close_when_flushed: bool = False  # set by waitress, too
    _lingers_until = 0.0

    @property
    def last_activity(self) -> float:
        """Monotonic, whatever waitress sets it to: the wall's clock may be moved."""
        return self._active_at

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        self._active_at = time.monotonic()

    def add_channel(self, map: Any = None) -> None:
        super().add_channel(map)
        self.server.newest[self] = None

    def del_channel(self, map: Any = None) -> None:
        self.server.newest.pop(self, None)
        super().del_channel(map)

    def handle_write(self) -> None:
        """Write what there is. A refusal of what was not read to its end, such as a body too large, is followed by a
        half-close: a close would be a reset, for which the peer's system drops the answer (RFC 9112, 9.6)."""
        if not (self.close_when_flushed and self.has_unread):
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if self.will_close:
            self.handle_close()
        elif not self.total_outbufs_len:
            self.close_when_flushed = False
            self.gives_way = True
            self._lingers_until = time.monotonic() + LINGER_S
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:  # the peer has left
                self.handle_close()

    def readable(self) -> bool:
        return bool(self._lingers_until or super().readable())

    def received(self, data: bytes) -> Any:
        if self._lingers_until:
            return False
        if self.request is None:
            self.incoming_since = time.monotonic()
        return super().received(data)

    def service(self) -> None:
        self.server.wanting.discard(self)
        try:
            super().service()
        finally:
            self.server.note(self)

    def write_soon(self, data: bytes) -> Any:
        try:
            return super().write_soon(data)
        finally:
            if self.total_outbufs_len:
                self.server.note(self)

    def is_too_slow(self, now: float) -> bool:
        """Whether the peer has had long enough to send this request, to take some of its answer, or to close."""
        if self._lingers_until:
            return now > self._lingers_until
        incoming = self.request
        if incoming is not None:
            allowed = HEADER_TIMEOUT_S + incoming.body_bytes_received / MIN_BODY_BYTES_PER_S
            if now - self.incoming_since > allowed:
                return True
        return bool(self.total_outbufs_len) and now - self.last_activity > SLOW_CONSUMER_TIMEOUT_S


class Server(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """waitress's server over a socket that listens already."""

    channel_class = Connection

    def __init__(self, app: Flask, gate: Gate, sock: socket.socket, limit: int, adjustments: Any) -> None:
        """`limit`: how many connections it lets in."""
        self.flask_app = app  # waitress wraps what it calls `application`
        info = (sock.family, sock.type, sock.proto, sock.getsockname())
        self.next_channel_cleanup = math.inf  # waitress never does it by its clock: run() does, by ours
        self._gate = gate
        self._limit = limit
        self._beginning: deque[Connection] = deque()
        self._refused: deque[Connection] = deque()
        self.wanting: set[Connection] = set()  # they wait for a thread, and then want a place
        self.newest = OrderedDict[Connection, None]()  # of those that have asked for nothing yet
        self._next_cleanup = 0.0
        self._deaf_until = 0.0
        self._last_resort: int | None = os.open(os.devnull, os.O_RDONLY)
        super().__init__(app, Sockets(), True, sock, adj=adjustments, bind_socket=False, sockinfo=info)

    def run(self) -> None:
        """Serve until every socket is closed."""
        while self._map:
            now = time.monotonic()
            if now >= self._next_cleanup:
                self._next_cleanup = now + self.adj.cleanup_interval
                self.maintenance(now)
            self._map.note(self)  # whether it takes connections is a matter of time, too
            has_more = self._beginning or self._refused or self._next_cleanup <= now
            self._map.turn(0.0 if has_more else self.adj.asyncore_loop_timeout)
            self._begin()
            self._refuse()
        self._map.close()

    def add_task(self, channel: Connection) -> None:
        """Have the next request of `channel` served by a thread, or refused if all places are taken, or will be.

        Called by the loop, and by a thread that has served one of several that came together."""
        request = channel.requests[0]
        self.newest.pop(channel, None)
        channel.gives_way = request.error is None and wants_place(request.command, request.path)
        if channel.gives_way:
            if self._gate.is_full(len(self.wanting)) and not channel.total_outbufs_len:  # the loop must not wait for it
                request.has_no_place = True
                self._refused.append(channel)
                return
            self.wanting.add(channel)
            self._beginning.append(channel)
        else:
            self.task_dispatcher.add_task(channel)

    def _begin(self) -> None:
        """One at a turn: a hundred threads that read a request at the same time would keep a probe's from its turn."""
        if self._beginning:
            self.task_dispatcher.add_task(self._beginning.popleft())

    def _refuse(self) -> None:
        """As many as a moment allows: probes come in meanwhile."""
        until = time.monotonic() + MOMENT_S
        while self._refused and time.monotonic() < until:
            channel = self._refused.popleft()
            try:
                channel.service()
            except Exception:  # noqa: BLE001 - as wasyncore does: it is logged, and the connection closed
                channel.handle_error()

    def note(self, channel: Connection) -> None:
        """A thread may have changed what `channel` waits for: have the loop ask it."""
        if channel.connected:  # else it may be after the end of the loop, whose pipe is closed
            self._map.note(channel)
            self.pull_trigger()

    def readable(self) -> bool:
        """Whether to look for new connections; called at each turn of the loop."""
        return time.monotonic() >= self._deaf_until and bool(super().readable())

    def accept(self) -> tuple[socket.socket, Any] | None:
        """A connection. Without room or a descriptor for it, its client is told so and sent away, and this is None."""
        if len(self.active_channels) >= self._limit:
            self._turn_away()
            return None
        try:
            found: tuple[socket.socket, Any] | None = super().accept()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            self._turn_away()
            return None
        return found

    def handle_accept(self) -> None:
        """As many as a moment allows; those that the system has no room for try again after a second."""
        self._make_way()
        until = time.monotonic() + ACCEPTING_S
        while time.monotonic() < until:
            before = len(self.active_channels)
            super().handle_accept()
            if len(self.active_channels) == before:
                break

    def _make_way(self) -> None:
        """For those who come: of those that have not asked yet, all but the newest give way from now on."""
        while len(self.newest) > NEWEST:
            older, _ = self.newest.popitem(last=False)
            older.gives_way = True
            self._map.note(older)

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
                sock.send(_NO_ROOM)
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
                if time.monotonic() - now >= MOMENT_S:
                    self._next_cleanup = now  # at the next turn, the rest
                    break
            elif channel.will_close:
                self._map.note(channel)

    def finish(self, deadline: float) -> None:
        """Wait until what is buffered is written, at most until `deadline`, then close every socket; run() returns."""
        while time.monotonic() < deadline and any(c.total_outbufs_len for c in list(self.active_channels.values())):
            time.sleep(0.01)
        self.trigger.pull_trigger(lambda: wasyncore.close_all(self._map))  # by the loop's own thread
