"""`forgellm pull` against a daemon and a small hub, from outside."""

import importlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import model_files
from daemons import Daemon, daemon, still_running
from forgellm import ModelManager, Settings
from hub_server import Hub, hub_server

pytestmark = pytest.mark.e2e

MB = 1 << 20
DEADLINE_S = 30.0


def model_of(folder: Path, extra_bytes: int) -> dict[str, bytes]:
    source = model_files.llama_folder(folder)
    shapes = model_files.llama_shapes() | {"model.extra": (extra_bytes // 4,)}
    return {
        **{each.name: each.read_bytes() for each in source.iterdir()},
        "model.safetensors": model_files.tensors(shapes),
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield found


def on_a_terminal(*words: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run `forgellm …` with a terminal as its stderr; what it did, and what the terminal was sent."""
    ours, theirs = pty.openpty()
    sent: list[bytes] = []

    def read() -> None:
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # how a terminal says that nobody has it open any more
                return
            sent.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    command = [sys.executable, "-m", "forgellm.cli", *words]
    try:
        run = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=env, timeout=60, check=False
        )
    finally:
        os.close(theirs)
        reader.join(DEADLINE_S)
        os.close(ours)
    return run, b"".join(sent).decode()


def state_of(served: Daemon, job_id: str) -> str:
    return str(served.http.get(f"/api/jobs/{job_id}").json()["job"]["state"])


def wait_for(served: Daemon, job_id: str, state: str) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if state_of(served, job_id) == state:
            return
        pause.wait(0.05)
    pytest.fail(str(served.http.get(f"/api/jobs/{job_id}").json()))


def test_200_mb_over_a_connection_cut_three_times_come_in_one_line_and_go_with_rm(tmp_path: Path, server: Hub) -> None:
    server.add("org/name", model_of(tmp_path / "source", 200 * MB))
    server.cuts = [50 * MB, 100 * MB, 150 * MB]
    with daemon(tmp_path) as served:
        run, seen = on_a_terminal("pull", "--url", served.url, "org/name")
        assert (run.returncode, server.cuts) == (0, []), seen
        assert run.stdout.startswith("org/name is here (210 MB)")
        assert "model.safetensors" in seen
        assert seen.count("\n") <= 1, "one line, drawn again and again"
        listed = served.http.get("/api/models").json()["models"]
        assert "org/name" in [each["id"] for each in listed]
        removed = on_a_terminal("rm", "--url", served.url, "org/name")[0]
        assert (removed.returncode, removed.stdout) == (0, "org/name is removed (210 MB freed)\n")
        assert served.http.delete("/api/models/org/name").json()["code"] == "model_not_found"


def test_a_daemon_killed_in_mid_pull_leaves_no_process_and_the_next_one_goes_on(tmp_path: Path, server: Hub) -> None:
    server.add("org/name", model_of(tmp_path / "source", 8 * MB))
    server.hold_at = 4 * MB
    [sha256] = server.ids
    part = tmp_path / "hf/hub/models--org--name/blobs" / f"{sha256}.incomplete"
    with daemon(tmp_path) as served:
        job = served.http.post("/api/models/pull", json={"model": "org/name"}).json()["job"]
        assert server.held.wait(DEADLINE_S)
        pause = threading.Event()
        while not part.exists() or part.stat().st_size == 0:
            pause.wait(0.02)
        assert state_of(served, job["id"]) == "running"
        refused = served.http.delete("/api/models/org/name")
        assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
        family = served.family()
        assert any("forgellm.catalog.pull" in each.cmdline() for each in family)
        served.process.kill()
        assert still_running(family) == []
    server.hold_at = None
    server.go_on.set()
    with (
        daemon(tmp_path) as served,
        ModelManager(Settings(state_dir=str(tmp_path / "state")), autostart=False) as manager,
    ):
        again = manager.downloads.pull("org/name")
        wait_for(served, again.id, "done")
        assert [each.model for each in manager.downloads.jobs()] == ["org/name"]
        resumed = [asked for path, asked, _ in server.asked if path.startswith("/cdn/") and asked]
        assert len(resumed) == 1
        assert manager.downloads.remove("org/name").freed_bytes > 8 * MB


def test_the_command_line_pulls_without_a_daemon_and_tells_an_error_in_one_sentence(
    tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/name", model_of(tmp_path / "source", MB))
    server.tokens["org/name"] = "hf_right"
    nobody = ("--url", "http://127.0.0.1:9")
    run, seen = on_a_terminal("pull", *nobody, "org/name")
    assert (run.returncode, run.stdout) == (1, "")
    assert "HF_TOKEN" in seen
    server.tokens.clear()
    assert on_a_terminal("pull", *nobody, "org/name")[0].returncode == 0
    shown = on_a_terminal("show", "org/name")[0]
    assert shown.returncode == 0
    assert "parameters" in shown.stdout
    found = on_a_terminal("models", "--remote", "name")[0]
    assert found.stdout.splitlines()[-1].split()[0] == "org/name"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    run, seen = on_a_terminal("models", "--remote", "name")
    assert (run.returncode, run.stdout) == (1, "")
    assert len(seen.splitlines()) == 1
    assert "Error: the hub at http://127.0.0.1:9 does not answer" in seen


def test_the_official_ollama_client_pulls_and_deletes(tmp_path: Path, server: Hub) -> None:
    ollama = importlib.import_module("ollama")  # it takes its time: not while the tests of other tiers are collected
    server.add("org/name", model_of(tmp_path / "source", 8 * MB))
    with daemon(tmp_path) as served, ollama.Client(host=served.url, timeout=60) as client:
        *lines, last = client.pull("org/name", stream=True)
        assert (lines[0].status, last.status) == ("pulling manifest", "success")
        assert lines[-1].total is not None
        assert lines[-1].total > 8 * MB
        assert client.pull("org/name").status == "success"
        assert "org/name" in [each.model for each in client.list().models]
        assert client.delete("org/name").status == "success"
        with pytest.raises(ollama.ResponseError, match="does not hold") as gone:
            client.delete("org/name")
        assert gone.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="org/nobody"):
            list(client.pull("org/nobody", stream=True))
        for method in ("GET", "HEAD"):  # how clients look whether there is a server
            assert served.http.request(method, "/").status_code == 200
        assert served.http.get("/").text == "ForgeLLM is running"
