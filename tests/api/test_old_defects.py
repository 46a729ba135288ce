"""The sixteen defects of ForgeLLM 0.4.7 that were reproduced, each as the scenario that must work here."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live import GENERATE, Live, live, wait_until

from daemons import daemon, still_running
from forgellm import Settings, Supervisor

pytestmark = pytest.mark.process

MB = 1 << 20
LONG = " ".join(str(number) for number in range(5000))
CHINESE = "法国的首都是巴黎。"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "big": {"allocate_bytes": 64 * MB},
        "good": {"text": "from good"},
        "first": {"text": "from first", "load_s": 0.6},
        "second": {"text": "from second", "load_s": 0.1},
        "busy": {"text": LONG, "tokens_per_s": 100},
        "chatty": {"print_at_load": "x" * 200_000},
        "slow": {"load_s": 2.0, "prefill_s": 2.0, "text": "at last"},
        "drip": {"text": "one two three four five six", "tokens_per_s": 10},
        "dies": {"text": LONG, "crash_at_token": 3},
        "chinese": {"text": CHINESE},
    }
    with live(tmp_path_factory.mktemp("defects"), models) as found:
        yield found


def test_01_unload_frees_the_memory_and_the_model_stays_unloaded(api):
    api.load("big")
    pid = api.status()["pid"]
    assert psutil.Process(pid).memory_info().rss > 64 * MB
    freed = api.http.post("/api/model/unload", json={}).json()["freed_bytes"]
    assert freed > 60 * MB
    assert not psutil.pid_exists(pid)
    assert [api.status("big")["loaded"] for _ in range(3)] == [False] * 3


def test_02_loading_a_bad_name_is_an_error_and_leaves_the_loaded_model_alone(api):
    api.load("good")
    response = api.http.post("/api/model/load", json={"model_name": "no-such-model", "wait": True})
    assert response.status_code == 404
    assert api.status()["model_name"] == "good"
    assert api.generate().json()["text"] == "from good"


def test_03_of_two_overlapping_loads_the_last_one_asked_for_answers(api):
    for name in ("first", "second"):
        assert api.http.post("/api/model/load", json={"model_name": name}).json()["model_name"] == name
    wait_until(lambda: api.status("first")["loaded"] and api.status("second")["loaded"])
    assert api.status()["model_name"] == "second"
    answer = api.generate().json()
    assert (answer["text"], answer["model_name"]) == ("from second", "second")
    assert api.generate(model="first").json()["text"] == "from first"


def test_04_while_it_generates_everything_else_works(api):
    api.load("busy")
    with socket.create_connection(api.server.address) as sock:
        raw = json.dumps({"model": "busy", "prompt": "x", "stream": True, "max_tokens": 100_000}).encode()
        head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sock.sendall(head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        wait_until(lambda: api.status("busy")["in_flight"] == 1)
        begun = time.monotonic()
        assert api.status("busy")["loaded"]
        assert time.monotonic() - begun < 4  # 0.4.7 hung for 5 s
        assert api.generate("x", model="busy", max_tokens=3).json()["text"] == "0 1 2"
        api.load("good")
        assert api.generate(model="good").json()["text"] == "from good"
        assert api.status("busy")["in_flight"] == 1
    wait_until(lambda: api.status("busy")["in_flight"] == 0)


def test_05_a_worker_that_prints_more_than_a_pipe_holds_goes_on_serving(api):
    """0.4.7 hung after 53 requests: nobody read its output."""
    api.load("chatty")
    for number in range(60):
        assert api.generate(f"request {number}", model="chatty").json()["text"] == f"request {number}"


@pytest.mark.e2e
def test_06_nothing_is_orphaned_when_the_server_gets_sigterm(tmp_path):
    with daemon(tmp_path, '[models.e]\nsource = "echo"\npreload = true\n') as served:
        wait_until(lambda: served.http.get("/api/model/status").json()["loaded"])
        family = served.family()
        assert served.http.get("/api/model/status").json()["pid"] in [process.pid for process in family]
        assert served.stop() == 0
        assert still_running(family) == []


def test_07_what_takes_long_is_waited_for_and_what_fails_is_no_success(api):
    """0.4.7 gave up after fixed times (30 s, 60 s) and answered 200 with the error as the text, or 500 and went on."""
    loaded = api.load("slow")
    assert loaded["loading_time"] >= 2.0
    answer = api.generate(model="slow").json()
    assert answer["text"] == "at last"
    assert answer["generation_time"] >= 2.0
    api.load("dies")
    failed = api.generate(model="dies")
    assert failed.status_code == 422
    assert failed.json()["success"] is False
    api.http.post("/api/model/unload", json={"model": "dies", "force": True})


def test_08_each_token_is_sent_when_it_is_there(api):
    api.load("drip")
    arrivals = []
    with api.http.stream("POST", GENERATE, json={"model": "drip", "prompt": "x", "stream": True}) as response:
        begun = time.monotonic()
        for _ in response.iter_lines():
            arrivals.append(time.monotonic() - begun)
    assert arrivals[-1] > 0.4
    assert arrivals[0] < arrivals[-1] / 2


def test_09_a_failure_in_mid_stream_is_one_line_of_json(api):
    """0.4.7 wrote a second set of HTTP headers into the body."""
    api.load("dies")
    response = api.generate(model="dies", stream=True, max_tokens=100)
    events = [json.loads(line) for line in response.content.splitlines()]
    assert response.status_code == 200
    assert [event["type"] for event in events] == ["chunk", "chunk", "chunk", "error"]
    assert events[-1]["code"] == "request_crashes_worker"
    assert b"HTTP/1" not in response.content
    api.http.post("/api/model/unload", json={"model": "dies", "force": True})


@pytest.mark.e2e
def test_10_preloading_works_and_there_is_one_server(tmp_path):
    with daemon(tmp_path, '[models.e]\nsource = "echo"\n', "--model", "e") as served:
        wait_until(lambda: served.http.get("/api/model/status").json()["loaded"])
        processes = [psutil.Process(served.process.pid), *served.family()]
        listening = [c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert len(listening) == 1
        assert served.stop() == 0


def test_11_an_adapter_folder_without_its_config_is_refused(tmp_path):
    import model_files

    model_files.llama_folder(tmp_path / "base")
    adapter = model_files.adapter_folder(tmp_path / "adapter")
    (adapter / "adapter_config.json").unlink()
    with live(tmp_path, {}) as api:
        body = {"model": str(tmp_path / "base"), "adapter_path": str(adapter)}
        response = api.http.post("/api/model/load", json=body)
        assert response.status_code in {400, 422}
        assert "adapter_config.json" in response.json()["error"]
        assert api.status()["loaded"] is False


def test_12_an_answer_that_is_not_ascii_arrives_whole(api):
    api.load("chinese")
    assert api.generate(model="chinese").json()["text"] == CHINESE
    assert api.events(model="chinese")[0]["text"] == CHINESE


@pytest.mark.model
def test_13_base_or_instruct_is_told_by_the_tokenizer_not_by_the_name(tmp_path):
    """0.4.7 took `gemma-3-1b-it` for a base model."""
    import tiny_model

    chat = tiny_model.build(tmp_path / "some-base-model", chat_template=True)
    base = tiny_model.build(tmp_path / "gemma-3-1b-it", chat_template=False)
    with live(tmp_path, {}) as api:

        def prompt_tokens(model: Path, **body: bool) -> int:
            answer = api.generate("the quick brown fox", model=str(model), max_tokens=1, **body)
            assert answer.status_code == 200, answer.text
            return int(answer.json()["prompt_tokens"])

        for model, has_template in ((chat, True), (base, False)):
            api.load(str(model))
            info = api.http.get("/api/model/info", params={"model": str(model)}).json()["info"]
            assert info["has_chat_template"] is has_template
        raw = prompt_tokens(base)
        assert prompt_tokens(chat) > raw
        assert prompt_tokens(chat, is_base_model=True) == raw


def test_14_there_is_a_queue_a_finish_reason_and_a_way_to_cancel(tmp_path):
    models = {"one": {"text": LONG, "tokens_per_s": 100}}
    with live(tmp_path, models, max_batch=1, max_queue=1) as api:
        api.load("one")
        assert api.generate(max_tokens=2).json()["finish_reason"] == "length"

        def hold() -> socket.socket:
            sock = socket.create_connection(api.server.address)
            raw = json.dumps({"prompt": "x", "max_tokens": 100_000}).encode()
            head = f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            sock.sendall(head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
            return sock

        with hold():
            wait_until(lambda: api.status()["in_flight"] == 1)
            with hold():
                wait_until(lambda: api.status()["queue_depth"] == 1)
                full = api.generate()
                assert (full.status_code, full.json()["code"]) == (429, "queue_full")
                assert int(full.headers["Retry-After"]) >= 1
            wait_until(lambda: api.status()["queue_depth"] == 0)
            assert api.status()["in_flight"] == 1
        wait_until(lambda: api.status()["in_flight"] == 0)


@pytest.mark.model
def test_14b_stop_strings_are_honoured(tmp_path):
    import tiny_model

    model = str(tiny_model.build(tmp_path / "tiny"))
    greedy = {"temperature": 0, "max_tokens": 40, "repetition_penalty": 1}
    with live(tmp_path, {}) as api:
        api.load(model)
        whole = api.generate("tell me a story", **greedy).json()["text"]
        stop = whole[len(whole) // 2 :][:3]
        cut = api.generate("tell me a story", **greedy, stop=stop).json()
        assert cut["text"] == whole[: whole.index(stop)]
        assert cut["finish_reason"] == "stop"


@pytest.mark.e2e
def test_15_stopping_kills_nobody_elses_process(tmp_path):
    """0.4.7's exit hook killed every process of the machine whose command line contained mlx_lm."""
    bystander = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "mlx_lm", "forgellm"], stdin=-1)
    try:
        with daemon(tmp_path, '[models.e]\nsource = "echo"\npreload = true\n') as served:
            wait_until(lambda: served.http.get("/api/model/status").json()["loaded"])
            assert served.stop() == 0
        assert bystander.poll() is None
    finally:
        assert bystander.stdin is not None
        bystander.stdin.close()
        assert bystander.wait(10) == 0


def test_16_a_second_manager_changes_nothing_about_the_first(api, tmp_path):
    """0.4.7's second ModelManager() forgot what was loaded."""
    api.load("good")
    before = api.status("good")["pid"]
    with Supervisor(Settings(cache_dir=str(tmp_path), spare=False)) as second:
        assert second.status().current is None
        assert api.status("good")["loaded"]
    assert (api.status("good")["loaded"], api.status("good")["pid"]) == (True, before)
    assert api.generate(model="good").json()["text"] == "from good"
