"""Web processes apart from the daemon: gunicorn's and our own, killed, restarted, and left without a daemon."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from daemons import Daemon, daemon
from forgellm import ModelManager
from forgellm.errors import SupervisorUnavailable
from invariants import BYSTANDER, sound_daemon
from waiting import wait_until

pytestmark = pytest.mark.e2e

WORDS = " ".join(map(str, range(60)))
TOML = '[models.e]\nsource = "echo"\npreload = true\noptions = {tokens_per_s = 20.0}\n'
DEADLINE_S = 40.0

# Every answer says which process gave it.
APP = """
import os
from forgellm import ModelManager
from forgellm.api.app import create_app

app = create_app(ModelManager(connect={address!r}))


@app.after_request
def sign(response):
    response.headers["X-Process"] = str(os.getpid())
    return response
"""


def address(folder: Path) -> str:
    return f"unix://{folder}/state/control.sock"


def command(folder: Path, *options: str) -> list[str]:
    (folder / "web_app.py").write_text(APP.format(address=address(folder)), "utf-8")
    return [sys.executable, "-m", "gunicorn", "--chdir", str(folder), "-b", "127.0.0.1:0", *options, "web_app:app"]


@contextmanager
def gunicorn(folder: Path, *options: str) -> Iterator[httpx2.Client]:
    """Three gthread processes over the daemon of `folder`."""
    log_path = folder / "gunicorn.log"
    with log_path.open("wb") as log:
        web = subprocess.Popen(
            command(folder, "-w", "3", "-k", "gthread", "--threads", "16", *options), stdout=log, stderr=log
        )
        try:
            wait_until(lambda: "Listening at" in log_path.read_text() or web.poll() is not None)
            found = re.search(r"Listening at: (http://\S+)", log_path.read_text())
            assert found, log_path.read_text()
            with httpx2.Client(base_url=found[1], timeout=DEADLINE_S, trust_env=False) as http:
                yield http
        finally:
            web.terminate()
            web.wait(20)


@dataclass
class Stream(threading.Thread):
    """One streamed answer, read as it comes; `process` is that which serves it."""

    http: httpx2.Client
    words: str = WORDS

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.text, self.process, self.last = "", 0, {"type": "none"}
        self.start()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        body = {"prompt": self.words, "model": "e", "max_tokens": 200, "stream": True}
        with (
            contextlib.suppress(httpx2.HTTPError),
            self.http.stream("POST", "/api/model/generate", json=body) as response,
        ):
            self.process = int(response.headers.get("X-Process", 0))
            for line in response.iter_lines():
                self.last = json.loads(line)
                self.text += self.last.get("text", "")


def loaded(served: Daemon) -> ModelManager:
    """A client of the daemon, which has its model loaded."""
    manager = ModelManager(connect=address(served.folder))
    manager.load("e")
    return manager


def in_flight(manager: ModelManager) -> int:
    found = manager.status().model("e")
    assert found is not None
    return found.in_flight


@pytest.mark.chaos
def test_chaos_070_sync_workers_are_refused_at_the_start_with_the_reason(tmp_path):
    run = subprocess.run(
        command(tmp_path, "-k", "sync"), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert run.returncode != 0
    assert "--worker-class gthread" in run.stderr


@pytest.mark.chaos
def test_chaos_070_a_stream_outlasts_the_timeout_of_gunicorns_threads(tmp_path):
    with daemon(tmp_path, TOML + BYSTANDER) as served, gunicorn(tmp_path, "--timeout", "1") as http:
        loaded(served)
        with sound_daemon(served):
            stream = Stream(http)
            stream.join(DEADLINE_S)
        assert stream.text == WORDS
        assert stream.last["type"] == "complete"
        assert stream.last["generation_time"] > 2.5


@pytest.mark.chaos
def test_chaos_071_a_web_process_that_is_killed_takes_its_own_requests_along_and_no_other(tmp_path):
    toml = TOML.replace("tokens_per_s = 20.0", "tokens_per_s = 8.0") + BYSTANDER  # none ends before all have begun
    with daemon(tmp_path, toml) as served, gunicorn(tmp_path) as http:
        manager = loaded(served)
        with sound_daemon(served):
            own = manager.generate("e", WORDS)
            streams = [Stream(http) for _ in range(9)]
            wait_until(lambda: all(stream.text for stream in streams))
            assert in_flight(manager) == 10
            victim, held = Counter(stream.process for stream in streams).most_common()[-1]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: in_flight(manager) == 10 - held, 2.0)
            for stream in streams:
                stream.join(DEADLINE_S)
            assert all(stream.text == WORDS for stream in streams if stream.process != victim)
            assert all(stream.last["type"] == "chunk" for stream in streams if stream.process == victim)
            assert own.result().text == WORDS
        wait_until(lambda: http.get("/api/model/status").json()["in_flight"] == 0)


def test_a_client_that_leaves_gunicorn_ends_its_generation(tmp_path):
    toml = TOML.replace("tokens_per_s = 20.0", "prefill_s = 30.0")
    with daemon(tmp_path, toml) as served, gunicorn(tmp_path) as http:
        manager = loaded(served)
        leaving = httpx2.Client(base_url=http.base_url, timeout=0.5, trust_env=False)
        with leaving, pytest.raises(httpx2.TimeoutException):
            leaving.post("/api/model/generate", json={"prompt": "x", "model": "e"})
        wait_until(lambda: in_flight(manager) == 0, 15.0)


@pytest.mark.chaos
def test_chaos_087_gunicorn_needs_no_restart_when_the_daemon_does(tmp_path):
    """503 while it is away; the open stream goes on with the next one."""
    with daemon(tmp_path, TOML) as first, gunicorn(tmp_path) as http:
        loaded(first)
        journal = tmp_path / "state" / "control.journal.json"
        wait_until(lambda: journal.exists() and json.loads(journal.read_text())["models"])
        stream = Stream(http)
        wait_until(lambda: len(stream.text) > 20)
        first.process.kill()
        first.process.wait()
        refused = http.post("/api/model/generate", json={"prompt": "x", "model": "e"})
        assert (refused.status_code, refused.json()["code"]) == (503, "supervisor_unavailable")
        assert refused.headers["Retry-After"]
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
        with daemon(tmp_path, TOML):
            wait_until(lambda: http.get("/api/model/status").status_code == 200)
            wait_until(lambda: http.get("/api/model/status").json()["loaded"])
            assert http.post("/api/model/generate", json={"prompt": "x y", "model": "e"}).json()["text"] == "x y"
            stream.join(DEADLINE_S)
            assert (stream.text, stream.last["type"]) == (WORDS, "complete")


@pytest.mark.chaos
def test_chaos_088_a_web_server_that_starts_first_finds_the_daemon_when_it_comes(tmp_path):
    start = [sys.executable, "-m", "forgellm.cli", "web", "--connect", address(tmp_path)]
    with daemon(tmp_path, start=start) as web:
        answer = web.http.get("/api/model/status")
        assert (answer.status_code, answer.json()["code"]) == (503, "supervisor_unavailable")
        assert web.http.get("/healthz").status_code == 200
        assert psutil.Process(web.process.pid).children() == []
        with daemon(tmp_path, TOML):
            assert web.http.post("/api/model/load", json={"model": "e", "wait": True}).status_code == 200
            assert web.http.post("/api/model/generate", json={"prompt": "here it is"}).json()["text"] == "here it is"
            assert web.stop() == 0
            manager = ModelManager(connect=address(tmp_path))
            assert manager.get_status()["loaded"]  # the daemon goes on
    with pytest.raises(SupervisorUnavailable):
        manager.status()
