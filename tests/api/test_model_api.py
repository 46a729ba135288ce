"""The /api/model/* contract, over HTTP, on real workers with the echo engine."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from live import GENERATE, Live, live, wait_until

from forgellm.api import admin

pytestmark = pytest.mark.process

NASTY = 'data: {"a":1}\n\ndata: x \x00\x07\x1b[31m \u2028 "quoted" \\ 🙂 日本語'
LONG = " ".join(str(number) for number in range(5000))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "e": {},
        "slow": {"text": LONG, "tokens_per_s": 50},
        "prefill": {"prefill_s": 60.0},
        "fails": {"text": LONG, "fail_at_token": 2},
        "refuses": {"fail_at_token": 0},
        "nasty": {"text": NASTY},
        "broken": {"load_error": "model_invalid: model.safetensors is cut short"},
        "late": {"load_s": 0.5},
    }
    with live(tmp_path_factory.mktemp("api"), models) as found:
        for name in ("slow", "prefill", "fails", "refuses", "nasty", "e"):
            found.load(name)
        yield found


def post(api: Live, sock: socket.socket, **body: object) -> None:
    """Send a generate request by hand, so that the connection can be dropped at will."""
    raw = msgspec.json.encode(body)
    head = (
        f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    )
    sock.sendall(head.encode() + b"\r\n\r\n" + raw)


# Generate ------------------------------------------------------------------------------------------------------------


def test_a_whole_answer_has_every_field_of_the_contract(api):
    response = api.generate("one two three", model="e")
    answer = response.json()
    assert set(answer) >= {
        *("success", "text", "completion", "generation_time", "prompt_tokens", "completion_tokens", "total_tokens"),
        *("tokens_per_sec", "finish_reason", "time_to_first_token", "prompt_tokens_per_sec", "model_name"),
    }
    assert answer["text"] == answer["completion"] == "one two three"
    assert (answer["prompt_tokens"], answer["completion_tokens"], answer["total_tokens"]) == (3, 3, 6)
    assert (answer["finish_reason"], answer["model_name"]) == ("stop", "e")
    assert response.headers["X-Request-Id"].startswith("gen-")


def test_a_stream_is_chunks_and_then_the_counts(api):
    before = time.time()
    *chunks, last = api.events("one two three", model="e")
    assert [chunk["type"] for chunk in chunks] == ["chunk"] * 3
    assert "".join(chunk["text"] for chunk in chunks) == "one two three"
    assert all(before <= chunk["timestamp"] <= time.time() for chunk in chunks)
    assert last["type"] == "complete"
    assert (last["completion_tokens"], last["finish_reason"]) == (3, "stop")


def test_a_stream_and_a_whole_answer_count_the_same(api):
    whole = api.generate("a b c d", model="e").json()
    streamed = api.events("a b c d", model="e")[-1]
    timeless = {"prompt_tokens", "completion_tokens", "total_tokens", "finish_reason", "model_name"}
    assert {name: whole[name] for name in timeless} == {name: streamed[name] for name in timeless}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("*/*", "application/x-ndjson"), ("application/x-ndjson", "application/x-ndjson"), ("text/plain", "text/plain")],
)
def test_a_stream_is_ndjson_or_plain_text_as_the_client_asks(api, accept, content_type):
    body = {"model": "e", "prompt": "x", "stream": True}
    response = api.http.post(GENERATE, json=body, headers={"Accept": accept})
    assert response.headers["Content-Type"].partition(";")[0] == content_type


def test_every_write_of_a_stream_holds_whole_lines(api):
    """The web page of 0.4.7 does not join a line that comes in two pieces."""
    with api.http.stream(
        "POST", GENERATE, json={"model": "slow", "prompt": "x", "stream": True, "max_tokens": 20}
    ) as got:
        pieces = list(got.iter_raw())
    assert len(pieces) > 5
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(json.loads(line) for piece in pieces for line in piece.splitlines())


def test_chaos_092_output_of_a_malicious_model_stays_inside_its_json_strings(api):
    events = api.events(model="nasty")
    assert "".join(event["text"] for event in events[:-1]) == NASTY
    assert api.generate(model="nasty").json()["text"] == NASTY


def test_max_tokens_ends_an_answer_with_length(api):
    answer = api.generate("one two three", model="e", max_tokens=2).json()
    assert (answer["text"], answer["finish_reason"]) == ("one two", "length")


def test_a_failure_before_the_first_token_has_a_real_status_even_for_a_stream(api):
    for stream in (False, True):
        response = api.generate(model="refuses", stream=stream)
        assert (response.status_code, response.json()["code"]) == (500, "generation_failed")
        assert response.headers["X-Request-Id"].startswith("gen-")


def test_a_failure_after_the_first_token_is_the_last_line(api):
    *chunks, last = api.events(model="fails")
    assert "".join(chunk["text"] for chunk in chunks) == "0 1"
    assert last["type"] == "error"
    assert last["code"] == "generation_failed"
    assert "fail_at_token" in last["error"]


def test_a_request_that_is_late_is_504_or_the_last_line(api):
    response = api.generate(LONG, model="prefill", timeout_s=0.2)
    assert response.status_code == 504
    assert response.json()["code"] == "request_timeout"
    assert "not finished within 0.2 s" in response.json()["error"]
    events = api.events(LONG, model="slow", timeout_s=0.5)
    assert [event["type"] for event in events[:-1]] == ["chunk"] * (len(events) - 1)
    assert events[-1]["code"] == "request_timeout"


def test_a_failed_generation_is_never_a_success_with_the_error_as_its_text(api):
    response = api.generate(model="fails")
    assert response.status_code == 500
    assert response.json()["success"] is False
    assert "text" not in response.json()


def test_an_unknown_model_is_404_and_one_that_is_not_loaded_is_loaded(api):
    unknown = api.generate(model="nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "model_not_found")
    assert api.generate("one two", model="late").json()["text"] == "one two"
    api.http.post("/api/model/unload", json={"model": "late"})


def test_a_model_that_cannot_be_loaded_gives_its_requests_the_loads_own_error(api):
    response = api.generate(model="broken")
    assert (response.status_code, response.json()["code"]) == (422, "model_invalid")
    assert "cut short" in response.json()["error"]


# Leaving -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "stream"), list(itertools.product(["slow", "prefill"], [True, False])))
def test_chaos_064_065_a_client_that_leaves_ends_its_generation(api, model, stream):
    """In prefill and in a whole answer nothing is written, so no write can fail: the loop must ask. Left alone, each
    would go on for more than a minute."""
    with socket.create_connection(api.server.address) as sock:
        post(api, sock, model=model, prompt="x", stream=stream, max_tokens=10_000)
        wait_until(lambda: api.status(model)["in_flight"] == 1)
    wait_until(lambda: api.status(model)["in_flight"] == 0)


def test_chaos_069_more_requests_than_max_streams_get_503_and_status_still_answers(tmp_path):
    with live(tmp_path, {"slow": {"prefill_s": 60.0}}, max_streams=2) as api:
        api.load("slow")
        with socket.create_connection(api.server.address) as one, socket.create_connection(api.server.address) as two:
            post(api, one, model="slow", prompt="x")
            post(api, two, model="slow", prompt="x", stream=True)
            wait_until(lambda: api.status()["in_flight"] == 2)
            refused = api.generate()
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert int(refused.headers["Retry-After"]) >= 1
        wait_until(lambda: api.status()["in_flight"] == 0)
        assert api.http.get("/api/health").status_code == 200


def test_a_server_that_stops_ends_its_streams_with_a_reason(tmp_path):
    with live(tmp_path, {"slow": {"text": LONG, "tokens_per_s": 50}}) as api:
        api.load("slow")
        lines: list[bytes] = []
        started = threading.Event()

        def read() -> None:
            body = {"prompt": "x", "stream": True, "max_tokens": 10_000}
            with api.http.stream("POST", GENERATE, json=body) as response:
                for line in response.iter_lines():
                    lines.append(line.encode())
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(10)
        api.server.stop()
        reader.join(10)
        assert json.loads(lines[-1])["code"] == "shutting_down"


# Load, status, unload ------------------------------------------------------------------------------------------------


def test_the_life_of_a_model(tmp_path):
    with live(tmp_path, {"a": {"load_s": 1.0, "allocate_bytes": 64 << 20}}) as api:
        assert api.status()["loaded"] is False
        assert api.generate().json()["code"] == "model_not_loaded"

        answer = api.http.post("/api/model/load", json={"model_name": "a"}).json()
        assert answer == {
            "success": True,
            "message": "Model a loading started",
            "model_name": "a",
            "adapter_path": None,
            "original_adapter_selection": None,
        }
        loading = api.status()
        assert (loading["loaded"], loading["is_loading"], loading["model_name"]) == (False, True, "a")
        wait_until(lambda: api.status()["loaded"])
        again = api.load("a")
        assert "already loaded" in again["message"]

        status = api.status()
        assert set(status) >= {"state", "progress", "since", "pid", "life", "restarts", "queue_depth", "in_flight"}
        assert set(status["memory"]) >= {"estimate", "mlx_active", "footprint"}
        assert (status["state"], status["progress"], status["life"]) == ("ready", 1.0, 1)
        assert abs(time.time() - status["since"]) < 60
        assert [model["model_name"] for model in status["models"]] == ["a"]

        unloaded = api.http.post("/api/model/unload").json()
        assert unloaded["success"]
        assert unloaded["freed_bytes"] > 60 << 20
        assert api.status()["loaded"] is False
        second = api.http.post("/api/model/unload", json={"model_name": "a"})
        assert (second.status_code, second.json()["freed_bytes"]) == (200, 0)
        assert "not loaded" in second.json()["message"]


def test_a_load_that_is_waited_for_says_how_long_it_took(api):
    assert api.load("late")["loading_time"] >= 0.4
    api.http.post("/api/model/unload", json={"model": "late"})


def test_a_load_that_fails_tells_why_when_waited_for_and_in_the_status(api):
    response = api.http.post("/api/model/load", json={"model": "broken", "wait": True})
    assert (response.status_code, response.json()["code"]) == (422, "model_invalid")
    status = api.status("broken")
    assert "cut short" in status["error"]
    assert (status["loaded"], status["is_loading"]) == (False, False)
    api.load("e")


def test_a_name_that_does_not_exist_is_404(api):
    response = api.http.post("/api/model/load", json={"model": "nope"})
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("name", ["../../etc", "..\\x", "a\x00b", "x" * 10_000, "%2e%2e/x", "\u2024\u2024/x", ""])
def test_chaos_057_a_hostile_name_is_refused(api, name):
    response = api.http.post("/api/model/load", json={"model": name})
    assert response.status_code in {400, 404}
    assert response.json()["success"] is False


def test_the_status_of_a_model_that_is_not_loaded_is_no_error(api):
    status = api.status("nobody")
    assert (status["loaded"], status["state"], status["model_name"]) == (False, "stopped", "nobody")


def test_info_says_what_the_model_is(api):
    info = api.http.get("/api/model/info", params={"model": "e"}).json()
    assert info["success"]
    assert info["info"]["has_chat_template"] is True
    assert info["info"]["context_length"] > 0


# Everything else -----------------------------------------------------------------------------------------------------


def test_health_names_the_version(api):
    for path in ("/api/health", "/healthz"):
        answer = api.http.get(path).json()
        assert answer["status"] == "ok"
        assert answer["version"]


def test_chaos_076_health_is_degraded_while_a_disk_is_full(api, monkeypatch):
    """The server goes on: it is alive, and a restart would not help."""
    monkeypatch.setattr(admin, "FULL_BYTES", 1 << 80)
    answer = api.http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["reasons"] == ["the disk of its logs is full", "the disk of its cache is full"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": "\xff"}', b'{"prompt": NaN}', b"\xef\xbb\xbf{}"])
def test_a_bad_body_is_400_on_every_route_that_takes_one(api, body):
    for path in ("load", "generate") if body == b"" else ("load", "generate", "unload"):
        response = api.http.post(f"/api/model/{path}", content=body, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), path


def test_wrong_paths_and_methods_are_json(api):
    assert api.http.get("/api/nothing").json()["code"] == "not_found"
    assert api.http.get("/nothing").status_code == 404
    wrong = api.http.get(GENERATE)
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")


def test_a_body_over_the_limit_is_413(tmp_path):
    with live(tmp_path, {"e": {}}, max_request_bytes=1000) as api:
        response = api.generate("x" * 2000)
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


def test_eight_clients_at_once_each_get_their_own_answer(api):
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        with httpx2.Client(base_url=api.server.url, timeout=20, trust_env=False) as http:
            words = " ".join(f"{number}.{word}" for word in range(50))
            response = http.post(GENERATE, json={"model": "e", "prompt": words})
            answers[number] = response.json()["text"] if response.json()["text"] == words else "mixed up"

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(20)
    assert set(answers) == set(range(8))
    assert "mixed up" not in answers.values()


def test_the_lists_of_models_have_the_old_shape(tmp_path: Path):
    trained = tmp_path / "models" / "cpt" / "mine"
    trained.mkdir(parents=True)
    (trained / "0000100_adapters.safetensors").write_bytes(b"x" * 100)
    (trained / "adapter_config.json").write_text('{"model": "e"}')
    with live(tmp_path, {"e": {}}, models_dir=str(tmp_path / "models")) as api:
        every = api.http.get("/api/models").json()
        assert every["success"]
        assert all(set(model) == {"id", "name", "path", "type", "size", "integrity"} for model in every["models"])
        assert "e" in [model["id"] for model in api.http.get("/api/base_models").json()["models"]]
        cpt = api.http.get("/api/cpt_models").json()["models"]
        assert [model["type"] for model in cpt] == ["cpt"]
        assert api.http.get("/api/ift_models").json()["models"] == []
        found = api.http.get("/api/checkpoints", params={"model_dir": cpt[0]["id"]}).json()["checkpoints"]
        assert [checkpoint["name"] for checkpoint in found] == ["0000100_adapters.safetensors"]
        assert api.http.get("/api/checkpoints", params={"model_dir": "../.."}).status_code == 404
