"""Connections of the server around any app: limits, slow peers, refusals, clients that leave. No models."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse

import httpx2
from flask import Flask, Response, request
from raw import connect, echo_app, read_all, serving

from forgellm.api import connections, errors, http_server, overload
from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from waiting import wait_until


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


def test_chaos_061_who_sends_too_much_hears_so_though_it_was_not_read():
    length = 8 << 20
    with serving(echo_app(), max_request_bytes=1024) as server, connect(server) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length)
        assert read_all(sock).startswith(b"HTTP/1.1 413")


def test_chaos_061_who_sends_on_and_on_after_a_refusal_is_cut_off(monkeypatch):
    monkeypatch.setattr(connections, "LINGER_S", 0.0)
    with serving(echo_app(), max_request_bytes=1024) as server, connect(server) as sock:
        sock.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 413")
        wait_until(lambda: not server._server.active_channels)


def test_chaos_066_garbage_is_a_json_error():
    with serving(echo_app()) as server, connect(server) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert json.loads(body)["success"] is False


def test_chaos_062_a_request_that_drips_in_is_cut_off_and_others_are_served(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.2)
    with serving(echo_app()) as server, connect(server) as slow:
        slow.sendall(b"GET / HT")
        assert httpx2.get(server.url).text == "here"
        assert read_all(slow) == b""


def test_a_new_connection_is_not_taken_for_one_that_was_just_cut_off(monkeypatch):
    """It gets the number of the other's descriptor: no event may be pending for that."""
    monkeypatch.setattr(connections, "HEADER_TIMEOUT_S", 0.1)
    maintenance = connections.Server.maintenance
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
        monkeypatch.setattr(connections.Server, "maintenance", and_somebody_connects)
        assert has_connected.wait(10)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(client).endswith(b"here")


def test_chaos_063_a_client_that_never_reads_is_cut_off_and_its_stream_is_closed(monkeypatch):
    """Otherwise it would hold a thread, and a place in the batch, for ever."""
    monkeypatch.setattr(connections, "SLOW_CONSUMER_TIMEOUT_S", 0.3)
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


# refused by the loop -------------------------------------------------------------------------------------------------

CHAT = "/v1/chat/completions"
ASK = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()


class Busy:
    """An app whose threads stand still, each in an answer or in a look at its status, until it is told to go on."""

    def __init__(self, places: int) -> None:
        self.gate = Gate(places)
        self.may_go_on = threading.Event()
        self.standing = 0
        self.app = Flask(__name__)
        self.app.add_url_rule("/", view_func=self.stand)
        self.app.add_url_rule(CHAT, view_func=self.answer, methods=["POST"])
        errors.register(self.app)
        overload.register(self.app, self.gate)

    def stand(self) -> str:
        self.standing += 1
        assert self.may_go_on.wait(10)
        return "done"

    def answer(self) -> str:
        with self.gate.place():
            return self.stand()


@contextmanager
def standing_still(busy: Busy) -> Iterator[HttpServer]:
    """The server, when each of its threads stands still; at the end they go on, and say so."""
    count = 2 + http_server.QUICK_THREADS
    with serving(busy.app, busy.gate) as server, ExitStack() as held:
        socks = [held.enter_context(connect(server)) for _ in range(count)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: busy.standing == count)
        yield server
        busy.may_go_on.set()
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def refusal(sock: socket.socket) -> str:
    """The code of the refusal that comes; the connection stays."""
    with HTTPResponse(sock) as answer:
        answer.begin()
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        return str(json.load(answer)["code"])


def test_chaos_069_who_has_no_place_is_refused_though_no_thread_is_free():
    busy = Busy(places=0)
    with standing_still(busy) as server, connect(server) as sock:
        for _ in range(2):
            sock.sendall(ASK)
            assert refusal(sock) == "unavailable"


def test_chaos_069_those_that_wait_for_a_thread_are_counted_and_have_their_place():
    busy = Busy(places=1)
    with standing_still(busy) as server, connect(server) as first, connect(server) as second:
        first.sendall(ASK)
        wait_until(lambda: server._server.wanting)
        second.sendall(ASK)
        assert refusal(second) == "unavailable"
        busy.may_go_on.set()
        assert first.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_refusal_waits_for_the_answer_before_it_on_its_connection():
    busy = Busy(places=0)
    with serving(busy.app, busy.gate) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + ASK.replace(b"Host", b"Connection: close\r\nHost"))
        wait_until(lambda: busy.standing == 1)
        busy.may_go_on.set()
        one, _, two = read_all(sock).partition(b"done")
    assert one.startswith(b"HTTP/1.1 200")
    assert two.startswith(b"HTTP/1.1 503")


def test_one_connection_too_many_is_told_so_and_the_others_stay(monkeypatch):
    monkeypatch.setattr(http_server, "_connection_limit", lambda: 2)
    ask = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with serving(echo_app()) as server, connect(server) as one, connect(server) as two:
        wait_until(lambda: len(server._server.active_channels) == 2)
        with connect(server) as three:
            assert refusal(three) == "unavailable"
        for sock in (one, two):
            sock.sendall(ask)
            assert read_all(sock).endswith(b"here")
        with connect(server) as four:
            four.sendall(ask)
            assert read_all(four).endswith(b"here")


def test_answers_that_were_asked_for_in_the_same_moment_are_begun_one_at_a_turn_of_the_loop(monkeypatch):
    busy, may_read = Busy(places=9), threading.Event()
    busy.may_go_on.set()
    with serving(busy.app, busy.gate) as server, ExitStack() as held:
        loop, turns, begun = server._server, itertools.count(), list[int]()
        turn, begin = loop._map.turn, loop.task_dispatcher.add_task
        loop._map.turn = lambda timeout_s: (next(turns), turn(timeout_s))
        monkeypatch.setattr(loop.task_dispatcher, "add_task", lambda sock: (begun.append(next(turns)), begin(sock)))
        socks = [held.enter_context(connect(server)) for _ in range(3)]
        wait_until(lambda: len(loop.active_channels) == 3)
        loop.trigger.pull_trigger(lambda: may_read.wait(10))
        for sock in socks:
            sock.sendall(ASK)
        may_read.set()
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert all(later - earlier > 1 for earlier, later in itertools.pairwise(begun))  # there was a turn between


def test_who_asked_for_an_answer_gives_way_and_who_waits_to_ask_but_not_the_newest(monkeypatch):
    monkeypatch.setattr(connections, "NEWEST", 1)
    with serving(echo_app()) as server, ExitStack() as held:
        found = server._server.active_channels
        socks: list[socket.socket] = []
        for count in range(1, 5):
            socks.append(held.enter_context(connect(server)))
            wait_until(lambda count=count: len(found) == count)
        channels = list(found.values())
        assert [each.gives_way for each in channels] == [True, True, False, False]
        socks[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        socks[3].sendall(ASK)
        for sock in (socks[0], socks[3]):
            assert sock.recv(65536)
        assert [each.gives_way for each in channels] == [False, True, False, True]
        socks[2].close()
        wait_until(lambda: not server._server.newest)


def test_a_connection_that_asks_nothing_for_long_is_closed():
    with serving(echo_app()) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with HTTPResponse(sock) as answer:
            answer.begin()
            assert answer.read() == b"here"
        server._server.adj.channel_timeout = 0
        assert read_all(sock) == b""
