"""The server around any app: stopping, limits, slow peers and clients that leave. Raw sockets, no models."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from flask import Flask, Response, request

from forgellm import keys
from forgellm.api import http_server
from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from forgellm.config import Settings
from forgellm.errors import AddressInUse, ConfigError
from waiting import wait_until


def echo_app() -> Flask:
    app = Flask(__name__)

    @app.post("/length")
    def length() -> str:
        return str(len(request.get_data()))

    @app.get("/")
    def index() -> str:
        return "here"

    return app


@contextmanager
def serving(app: Flask, **settings: int) -> Iterator[HttpServer]:
    gate = Gate(4)
    server = HttpServer(app, Settings(port=0, max_streams=2, **settings), gate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(server.address, timeout=10)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


def test_a_server_that_stops_leaves_nothing(no_leaks):
    with serving(echo_app()) as server:
        assert httpx2.get(server.url).text == "here"
    with pytest.raises(httpx2.TransportError):
        httpx2.get(server.url)


def test_an_address_in_use_is_told_with_its_owner():
    with serving(echo_app()) as server:
        second = HttpServer(echo_app(), Settings(port=server.address[1]), Gate(1))
        with pytest.raises(AddressInUse, match=rf"in use by process {os.getpid()}"):
            second.bind()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "127.evil.example", ""])  # noqa: S104
def test_only_this_machine_is_served(host):
    with pytest.raises(ConfigError, match="API keys"):
        HttpServer(echo_app(), Settings(host=host, port=0), Gate(1)).bind()


def test_other_machines_are_served_once_there_is_a_key(tmp_path):
    settings = Settings(host="0.0.0.0", port=0, keys_file=str(tmp_path / "keys.json"))  # noqa: S104
    keys.create(settings.keys_path, name="laptop")
    server = HttpServer(echo_app(), settings, Gate(1))
    server.bind()
    server.stop()
    keys.revoke(settings.keys_path, "laptop")
    with pytest.raises(ConfigError, match="keys create"):
        HttpServer(echo_app(), settings, Gate(1)).bind()


def test_localhost_is_reached_as_127_0_0_1():
    server = HttpServer(echo_app(), Settings(host="localhost", port=0), Gate(1))
    server.bind()
    assert server.address[0] == "127.0.0.1"
    server.stop()


def test_chaos_061_a_body_over_the_limit_is_refused_before_it_is_read():
    """The client only announces a gigabyte; the answer comes without waiting for it."""
    with serving(echo_app(), max_request_bytes=1000) as server, connect(server) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nxx")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert json.loads(body)["code"] == "payload_too_large"


def test_a_body_of_just_the_limit_is_taken_and_one_byte_more_is_not():
    with serving(echo_app(), max_request_bytes=1000) as server:
        assert httpx2.post(f"{server.url}/length", content=b"x" * 1000).text == "1000"
        assert httpx2.post(f"{server.url}/length", content=b"x" * 1001).status_code == 413


def test_chaos_061_a_chunked_body_over_the_limit_is_cut_off():
    with serving(echo_app(), max_request_bytes=1000) as server, connect(server) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sock.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 413")


def test_chaos_061_headers_without_end_are_refused():
    with serving(echo_app()) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 270_000 + b"\r\n\r\n")
        assert read_all(sock).startswith((b"HTTP/1.0 431", b"HTTP/1.1 431"))


def test_chaos_066_garbage_is_a_json_error():
    with serving(echo_app()) as server, connect(server) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert json.loads(body)["success"] is False


def test_chaos_062_a_request_that_drips_in_is_cut_off_and_others_are_served(monkeypatch):
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.2)
    with serving(echo_app()) as server, connect(server) as slow:
        slow.sendall(b"GET / HT")
        assert httpx2.get(server.url).text == "here"
        assert read_all(slow) == b""


def test_a_new_connection_is_not_taken_for_one_that_was_just_cut_off(monkeypatch):
    """It gets the number of the other's descriptor: no event may be pending for that."""
    monkeypatch.setattr(http_server, "HEADER_TIMEOUT_S", 0.1)
    maintenance = http_server._Server.maintenance
    has_connected = threading.Event()

    def and_somebody_connects(self, now: float) -> None:
        before = len(self.active_channels)
        maintenance(self, now)
        if len(self.active_channels) < before:
            client.connect(server.address)
            has_connected.set()

    with serving(echo_app()) as server, connect(server) as slow, socket.socket() as client:
        client.settimeout(10)
        slow.sendall(b"GET / HT")
        wait_until(lambda: server._server.active_channels)
        monkeypatch.setattr(http_server._Server, "maintenance", and_somebody_connects)
        assert has_connected.wait(10)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(client).endswith(b"here")


def test_chaos_063_a_client_that_never_reads_is_cut_off_and_its_stream_is_closed(monkeypatch):
    """Otherwise it would hold a thread, and a place in the batch, for ever."""
    monkeypatch.setattr(http_server, "SLOW_CONSUMER_TIMEOUT_S", 0.3)
    closed = threading.Event()
    app = Flask(__name__)

    def flood() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    app.add_url_rule("/", view_func=lambda: Response(flood()))
    with serving(app) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed.wait(10)


def test_chaos_065_an_app_can_ask_whether_its_client_has_left():
    started, seen = threading.Event(), threading.Event()
    app = Flask(__name__)

    @app.get("/")
    def wait() -> str:
        started.set()
        is_gone = request.environ["waitress.client_disconnected"]
        deadline = time.monotonic() + 10
        while not is_gone() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        if is_gone():
            seen.set()
        return ""

    with serving(app) as server:
        with connect(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert started.wait(5)
        assert seen.wait(5)


def test_chaos_066_a_head_request_has_no_body():
    with serving(echo_app()) as server, connect(server) as sock:
        sock.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


def test_chaos_066_pipelined_requests_are_answered_in_order():
    with serving(echo_app()) as server, connect(server) as sock:
        one = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        two = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx"
        sock.sendall(one + two)
        answers = read_all(sock)
    assert answers.index(b"\r\n\r\n1") < answers.index(b"\r\n\r\n2")
