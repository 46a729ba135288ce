"""A real daemon that is given what it must refuse: models, names, bodies, connections. Nobody else notices.

All that a part may be given, and each word of its refusal, is in the tests of that part; here it is what must hold
around them: another model's stream, health, legal moves, and nothing held at the end.
"""

import contextlib
import json
import pickle
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

import model_files
from bad_peers import bad_peers
from broken_models import BROKEN, Evil
from daemons import Daemon, daemon
from forgellm import ModelManager
from forgellm.api.errors import STATUS_BY_CODE
from forgellm.control import handshake
from forgellm.control.link import Link
from forgellm.control.unix import UnixAddress
from invariants import BYSTANDER, sound_daemon
from waiting import DEADLINE_S, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

MAX_BODY = 1_000_000
ECHO = """
spare = false
[models.e]
source = "echo"
preload = true
[models.long]
source = "echo"
options = {tokens_per_s = 5000.0}
[models.late]
source = "echo"
options = {tokens_per_s = 50.0, load_s = 0.5}
"""
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "models").mkdir()
    toml = f'models_dir = "{folder}/models"\nmax_request_bytes = {MAX_BODY}\n{ECHO}{BYSTANDER}'
    with daemon(folder, toml) as found:
        load(found, "e")
        yield found


def load(served: Daemon, model: Any) -> httpx2.Response:
    return served.http.post("/api/model/load", json={"model": model, "wait": True})


def is_served(served: Daemon) -> bool:
    return bool(served.http.post("/api/model/generate", json={"model": "e", "prompt": "a b"}).json()["text"] == "a b")


def address(served: Daemon) -> UnixAddress:
    return UnixAddress(served.folder / "state" / "control.sock")


# 46 to 57: models ----------------------------------------------------------------------------------------------------


def test_chaos_046_048_049_050_051_052_053_055_broken_models_are_refused_and_nobody_notices(served: Daemon) -> None:
    canary = served.folder / "canary"
    with sound_daemon(served):
        for case, (change, error, names) in BROKEN.items():
            name = re.sub(r"\W+", "-", case)
            change(model_files.llama_folder(served.folder / "models" / name), canary)
            answer = load(served, name)
            assert (answer.status_code, answer.json()["code"]) == (STATUS_BY_CODE[error.code], error.code), case
            assert names in answer.json()["error"], case
            shutil.rmtree(served.folder / "models" / name)
        assert is_served(served)
    assert not canary.exists()


@pytest.mark.model
def test_chaos_056_060_a_model_whose_files_are_gone_answers_on_until_it_is_unloaded(served: Daemon) -> None:
    import tiny_model

    folder = tiny_model.build(served.folder / "models" / "tiny")
    ask = {"model": "tiny", "prompt": "what is the capital of France?", "temperature": 0, "max_tokens": 20}
    with sound_daemon(served):
        assert load(served, "tiny").status_code == 200
        before = served.http.post("/api/model/generate", json=ask).json()
        shutil.rmtree(folder)
        after = served.http.post("/api/model/generate", json=ask).json()
        assert after["text"] == before["text"] != ""
        long = served.http.post("/api/model/generate", json={**ask, "prompt": "word " * 100_000})
        assert (long.status_code, long.json()["code"]) == (400, "context_length_exceeded")
        assert served.http.post("/api/model/unload", json={"model": "tiny"}).status_code == 200
        gone = load(served, "tiny")
        assert (gone.status_code, gone.json()["code"]) == (404, "model_not_found")


NAMES = ("../../etc", "/etc/passwd", "..\\x", "a\x00b", "x" * 10_000, "%2e%2e/x", "\u2024\u2024/x", "outside", "")


def test_chaos_054_057_091_hostile_names_origins_and_remote_code_are_refused(served: Daemon) -> None:
    (served.folder / "models" / "outside").symlink_to("/etc")
    with sound_daemon(served):
        for name in NAMES:
            answer = load(served, name)
            assert answer.status_code in {400, 404, 422}, name
            assert answer.json()["success"] is False
        remote = served.http.post("/api/model/load", json={"model": "e", "trust_remote_code": True})
        assert (remote.status_code, remote.json()["field"]) == (400, "trust_remote_code")
        for header, value in (("Host", "evil.example"), ("Origin", "http://evil.example")):
            answer = served.http.post("/api/model/load", json={"model": "e"}, headers={header: value})
            assert (answer.status_code, answer.json()["code"]) == (403, f"forbidden_{header.lower()}")
        assert is_served(served)


# 58 to 62: requests --------------------------------------------------------------------------------------------------

PATHS = ("/api/model/generate", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat")
NO_OBJECT = (
    b"",
    b'{"model": ',
    b'{"model": "e"} x',
    b'{"model": "e", "seed": NaN}',
    b'{"model": "e", "temperature": 1e400}',
    b"\xef\xbb\xbf{}",
    b'{"model": "\xff"}',
    b'{"model": "\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[]",
    b'{"model": "e", "model": "e"}',
)
VALUES: tuple[tuple[str, Any], ...] = (
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 1 << 63),
    ("temperature", -1),
    ("temperature", 1e308),
    ("top_p", 2),
    ("stop", [""]),
    ("stop", ["x"] * 10_000),
    ("seed", 1 << 70),
    ("prompt", ""),
)


def test_chaos_058_059_060_bodies_that_cannot_be_answered_are_refused_by_every_api(served: Daemon) -> None:
    with sound_daemon(served):
        for path in PATHS:
            for body in NO_OBJECT:
                answer = served.http.post(path, content=body, headers=JSON)
                assert answer.status_code == 400, (path, body[:40])
                assert answer.json(), path
            plain = served.http.post(path, content=b"{}", headers={"Content-Type": "text/plain"})
            assert "application/json" in plain.text, path
            assert served.http.post(path, content=b"x" * (MAX_BODY + 1), headers=JSON).status_code == 413
        for field, value in VALUES:
            answer = served.http.post("/api/model/generate", json={"model": "e", "prompt": "hi", field: value})
            assert (answer.status_code, answer.json()["field"].split("[")[0]) == (400, field), answer.text
        assert is_served(served)


CHUNK = b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16))
HEAD = b"POST /api/model/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
RAW = {
    "no HTTP": (b"nonsense\r\n\r\n", b" 400 "),
    "headers without end": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000, b" 431 "),
    "a length of a gigabyte": (HEAD + b"Content-Length: 1000000000\r\n\r\nx", b" 413 "),
    "chunks without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK * 20, b" 413 "),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b" 400 "),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n", b" 200 "),
    "a half-closed request": (HEAD + b"Content-Length: 100\r\n\r\n{}", b""),
}


def connect(served: Daemon) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(sock: socket.socket) -> bytes:
    """What comes until the other side closes, which may be a reset: it has not read all that was sent."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            found += data
    return found


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_chaos_061_066_sockets_that_speak_no_clean_http_cost_nobody_anything(served: Daemon) -> None:
    generate = json.dumps({"model": "e", "prompt": "word " * 1000, "stream": True, "max_tokens": 1000}).encode()
    with sound_daemon(served):
        for how, (said, status) in RAW.items():
            with connect(served) as sock:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it is refused before its end
                    sock.sendall(said)
                    if not status:
                        sock.shutdown(socket.SHUT_WR)
                assert status in read_all(sock)[:20], how
        with connect(served) as sock:
            sock.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_all(sock).endswith(b"\r\n\r\n")
        for length in (len(generate), len(generate) + 100):  # in its stream, and in its request
            for _ in range(20):
                sock = connect(served)
                sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + generate)
                reset(sock)
        served.wait_idle("e")
        assert is_served(served)


def test_chaos_062_063_who_sends_or_reads_too_slowly_is_cut_off_and_the_others_are_served(served: Daemon) -> None:
    """With the limits as they are: 10 s for a request's head, 30 s without reading."""
    body = json.dumps({"model": "long", "prompt": "x " * 400_000, "stream": True, "max_tokens": 800_000}).encode()
    with sound_daemon(served), contextlib.ExitStack() as stack:
        assert load(served, "long").status_code == 200
        reader = stack.enter_context(connect(served))
        reader.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        began = time.monotonic()
        slow = [stack.enter_context(connect(served)) for _ in range(500)]
        for sock in slow:
            sock.sendall(b"GET / HT")
        assert is_served(served)
        for sock in slow:
            assert read_all(sock) == b""
        assert 9 < time.monotonic() - began < 20
        assert is_served(served)
        served.wait_idle("long", 60.0)  # 80 s of tokens, which go into buffers for a few seconds
        assert time.monotonic() - began > 29
        assert served.http.post("/api/model/unload", json={"model": "long"}).status_code == 200
        assert is_served(served)


def test_chaos_068_loads_and_unloads_into_each_other_have_an_answer_each(served: Daemon) -> None:
    ask = {"model": "late", "prompt": " ".join(map(str, range(50)))}
    with sound_daemon(served), ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda _: load(served, "late"), range(8)))
        assert [answer.status_code for answer in together] == [200] * 8
        assert len({answer.json()["loading_time"] for answer in together}) == 1  # it was one load
        running = threads.submit(served.http.post, "/api/model/generate", json=ask)
        wait_until(lambda: served.http.get("/api/model/status", params={"model": "late"}).json()["in_flight"])
        assert served.http.post("/api/model/unload", json={"model": "late"}).status_code == 200
        assert running.result(DEADLINE_S).json()["text"] == ask["prompt"]
        loading = threads.submit(load, served, "late")
        wait_until(lambda: served.http.get("/api/model/status", params={"model": "late"}).json()["is_loading"])
        assert served.http.post("/api/model/unload", json={"model": "late"}).status_code == 200
        ended = loading.result(DEADLINE_S)
        assert (ended.status_code, ended.json()["code"]) == (503, "model_unloading")
        assert not served.http.get("/api/model/info", params={"model": "late"}).json()["loaded"]


# 83 to 86, 89: the control socket ------------------------------------------------------------------------------------


def test_chaos_083_084_086_089_bad_peers_of_the_control_socket_cost_nobody_anything(served: Daemon) -> None:
    place = address(served)
    canary = served.folder / "canary"
    pickled = pickle.dumps(Evil(canary))

    def peer() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(place.socket_path))
        return sock

    with sound_daemon(served):
        silent = [peer() for _ in range(50)]
        manager = ModelManager(connect=str(place))
        assert manager.status().models
        for said in (*bad_peers().values(), len(pickled).to_bytes(4, "big") + pickled):
            with peer() as sock:
                sock.sendall(said)
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
        with peer() as sock:  # somebody who knows the key
            handshake.connect(Link(sock, "it"), place.key_path.read_bytes())
            sock.sendall(len(pickled).to_bytes(4, "big") + pickled)
            read_all(sock)
        for sock in silent:
            with sock:
                assert read_all(sock) == b""
        assert manager.status().models
    assert not canary.exists()
