"""The daemon from outside: what it holds, how it starts and stops, what it leaves behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from daemons import Daemon, daemon, still_running
from invariants import BYSTANDER, sound_daemon

pytestmark = pytest.mark.e2e

ECHO = '[models.e]\nsource = "echo"\npreload = true\n'
MB = 1 << 20

# Runs the daemon as its script does, and says what it holds when it is told to stop.
WATCHED = """
import atexit, json, os, sys
from forgellm.daemon import main
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=open(os.environ["MODULES"], "w")))
main()
"""

# Every Python below a daemon that finds this notes what it imports.
SPY = """
import os, sys
notes = open(os.path.join(os.path.dirname(__file__), f"{os.getpid()}.txt"), "w", buffering=1)
sys.addaudithook(lambda event, args: event == "import" and notes.write(f"{args[0]}\\n") and None)
"""


def wait_loaded(served: Daemon, model: str = "e") -> int:
    """Wait until the model is ready; its worker's pid."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = served.http.get("/api/model/status", params={"model": model}).json()
        if status["loaded"]:
            return int(status["pid"])
    raise AssertionError(status)


def test_the_daemon_holds_no_mlx_and_little_memory(tmp_path, monkeypatch):
    """It must outlive whatever happens to a model, so nothing of a model may be in it, after serving one either."""
    modules = tmp_path / "modules.json"
    monkeypatch.setenv("MODULES", str(modules))
    with daemon(tmp_path, ECHO, start=[sys.executable, "-c", WATCHED]) as served:
        wait_loaded(served)
        for _ in range(20):
            answer = served.http.post("/api/model/generate", json={"prompt": "a b c", "model": "e"})
            assert answer.json()["text"] == "a b c"
        assert psutil.Process(served.process.pid).memory_info().rss < 70 * MB
        assert served.stop() == 0
    held = json.loads(modules.read_text())
    assert "flask" in held
    heavy = {"mlx", "mlx_lm", "transformers", "tokenizers", "numpy", "torch", "rich", "httpx2"}
    assert heavy.isdisjoint(name.partition(".")[0] for name in held)


def test_a_live_worker_holds_no_web_server(tmp_path):
    """What a worker has mapped and imported is its model's, so that it starts fast and a web bug cannot be in it."""
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY, "utf-8")
    command = [sys.executable, "-c", "from forgellm.daemon import main; main()"]
    with daemon(tmp_path, ECHO, start=["env", f"PYTHONPATH={spy}", *command]) as served:
        pid = wait_loaded(served)
        assert served.http.post("/api/model/unload", json={}).status_code == 200
        assert served.stop() == 0
    held = (spy / f"{pid}.txt").read_text("utf-8").split()
    assert "forgellm.worker.echo" in held
    web = {"flask", "werkzeug", "waitress", "click"}
    assert web.isdisjoint(name.partition(".")[0] for name in held)
    assert not any(name.startswith(("forgellm.api", "forgellm.cli", "forgellm.daemon")) for name in held)


def test_chaos_072_a_port_in_use_ends_it_with_3_and_its_owner_before_any_worker(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "forgellm.daemon", "--port", str(port), "--model", "echo"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 3
    assert f"in use by process {os.getpid()}" in run.stderr
    assert "starting" not in run.stderr


@pytest.mark.chaos
def test_chaos_073_a_second_daemon_ends_with_3_and_the_owner_of_the_first(tmp_path):
    with daemon(tmp_path, ECHO + BYSTANDER) as first:
        wait_loaded(first)
        command = [sys.executable, "-m", "forgellm.daemon", "--port", "0", "--model", "echo"]
        env = {**os.environ, "FORGELLM_CACHE_DIR": str(tmp_path)}
        with sound_daemon(first):
            second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)
        assert second.returncode == 3
        assert f"process {first.process.pid} is the daemon" in second.stderr
        assert "starting" not in second.stderr
        answer = first.http.post("/api/model/generate", json={"prompt": "still here", "model": "e"})
        assert answer.json()["text"] == "still here"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(tmp_path, number):
    with daemon(tmp_path, ECHO) as served:
        wait_loaded(served)
        family = served.family()
        assert len(family) >= 2  # a worker and the guardian
        begun = time.monotonic()
        assert served.stop(number) == 0
        assert time.monotonic() - begun < 10
        assert still_running(family) == []


RUN_AT_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "forgellm.daemon", *sys.argv[2:]])
"""


def test_chaos_041_the_end_of_its_terminal_stops_it_and_any_other_sighup_does_not(tmp_path):
    ours, terminal = os.openpty()
    os.set_inheritable(terminal, True)
    start = ["env", sys.executable, "-c", RUN_AT_A_TERMINAL, str(terminal)]
    with daemon(tmp_path, ECHO, start=start, pass_fds=(terminal,)) as served:
        os.close(terminal)
        wait_loaded(served)
        family = served.family()
        served.process.send_signal(signal.SIGHUP)
        wait_for_log(tmp_path, "reloaded:")
        os.close(ours)
        assert served.process.wait(10) == 0
        assert still_running(family) == []


def wait_for_log(folder, words):
    deadline = time.monotonic() + 10
    while words not in (folder / "daemon.log").read_text():
        assert time.monotonic() < deadline, (folder / "daemon.log").read_text()


def test_sighup_reloads_the_settings_and_a_bad_file_changes_nothing(tmp_path):
    config = tmp_path / "forgellm.toml"
    with daemon(tmp_path, ECHO) as served:
        wait_loaded(served)
        config.write_text("max_queue = many", "utf-8")
        served.process.send_signal(signal.SIGHUP)
        wait_for_log(tmp_path, "not reloaded, nothing has changed")
        refused = served.http.post("/api/admin/reload", json={})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
        assert str(config) in refused.json()["error"]
        config.write_text(ECHO + "context_length = 100\n[models.new]\nsource = 'echo'\npreload = true\n", "utf-8")
        plan = served.http.post("/api/admin/reload", json={"dry_run": True}).json()
        assert (plan["added"], plan["changed"]) == (["new"], {"e": ["context_length"]})
        assert served.http.get("/api/model/info", params={"model": "new"}).json()["loaded"] is False
        served.process.send_signal(signal.SIGHUP)
        wait_for_log(tmp_path, "reloaded: ReloadPlan(")
        wait_loaded(served, "new")
        info = served.http.get("/api/model/info", params={"model": "e"}).json()
        assert info["loaded"]
        assert served.stop() == 0


def test_a_signal_during_a_load_and_a_stream_stops_it_too(tmp_path):
    toml = (
        "shutdown_grace_s = 0.5\n"
        + ECHO
        + 'options = {prefill_s = 60.0}\n[models.slow]\nsource = "echo"\noptions = {load_s = 60.0}\n'
    )
    with daemon(tmp_path, toml, "--model", "slow") as served:
        wait_loaded(served)
        raw = b'{"prompt": "x", "model": "e"}'
        host, port = served.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"POST /api/model/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            sock.sendall(b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
            while served.http.get("/api/model/status", params={"model": "e"}).json()["in_flight"] == 0:
                pass
            family = served.family()
            assert served.stop() == 0
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"shutting_down" in answer
        assert still_running(family) == []


STREAM = {"model": "e", "prompt": " ".join(map(str, range(60))), "max_tokens": 60, "stream": True}
SLOW = ECHO + "options = {tokens_per_s = 30.0}\n"


@pytest.mark.chaos
def test_chaos_039_running_requests_finish_after_sigterm_and_new_ones_are_refused(tmp_path):
    with daemon(tmp_path, SLOW) as served:
        wait_loaded(served)
        with served.http.stream("POST", "/api/model/generate", json=STREAM) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            while served.http.get("/healthz").status_code != 503:
                pass
            refused = served.http.post("/api/model/generate", json=STREAM)
            events = [json.loads(line) for line in lines]
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
        assert refused.headers["Retry-After"]
        assert events[-1]["finish_reason"] == "stop"
        assert events[-1]["completion_tokens"] == 60
        assert served.process.wait(10) == 0


@pytest.mark.chaos
@pytest.mark.parametrize(("signals", "code"), [(2, 0), (3, 1)])
def test_chaos_040_a_second_signal_ends_what_runs_and_a_third_everything(tmp_path, signals, code):
    toml = SLOW.replace("30.0}", "1.0, ignore_unload = true, ignore_sigterm = true}")
    with daemon(tmp_path, "unload_timeout_s = 1.0\nterm_timeout_s = 1.0\n" + toml) as served:
        wait_loaded(served)
        family = served.family()
        with served.http.stream("POST", "/api/model/generate", json=STREAM) as response:
            next(response.iter_lines())
            begun = time.monotonic()
            served.process.send_signal(signal.SIGINT)
            while served.http.get("/healthz").status_code != 503:
                pass
            served.process.send_signal(signal.SIGINT)
            while "stopping at once" not in (tmp_path / "daemon.log").read_text():
                pass  # two signals of one kind at once would be one signal
            if signals == 3:
                served.process.send_signal(signal.SIGINT)
            assert served.process.wait(20) == code
        assert time.monotonic() - begun < (5 if signals == 3 else 20)
        assert still_running(family) == []
        assert "Traceback" not in (tmp_path / "daemon.log").read_text()


def test_chaos_038_killing_the_daemon_leaves_nothing(tmp_path):
    with daemon(tmp_path, ECHO) as served:
        wait_loaded(served)
        family = served.family()
        assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        assert still_running(family, 10) == []


@pytest.mark.parametrize(
    ("toml", "flags", "says"),
    [
        ("prot = 1\n", (), "prot"),
        ("port = 99999\n", (), "port"),
        ("", ("--host", "0.0.0.0"), "API keys"),  # noqa: S104
        ("", ("--model", "no-such-model"), "no-such-model"),
        ('state_dir = "/"\n', (), "state_dir"),
    ],
)
def test_settings_that_cannot_be_used_end_it_with_2_and_one_line(tmp_path: Path, toml, flags, says):
    config = tmp_path / "bad.toml"
    config.write_text(toml, "utf-8")
    command = [sys.executable, "-m", "forgellm.daemon", "--config", str(config), *flags]
    if "port" not in toml:
        command += ["--port", "0"]
    env = {**os.environ, "FORGELLM_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)
    assert run.returncode == 2, run.stderr
    assert says in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    journal = tmp_path / "state" / "control.journal.json"
    assert not journal.exists() or json.loads(journal.read_text())["is_clean"]  # it has not died


def test_chaos_090_a_daemon_that_died_loads_again_what_was_loaded_and_not_after_the_second_time(tmp_path):
    """Also with what the load asked for; an explicit load starts afresh."""
    port = free_port()
    toml = '[models.e]\nsource = "echo"\n'
    body = {"model_name": "e", "wait": True, "replicas": 2, "system_prompt": "be brief"}
    with daemon(tmp_path, toml, "--port", str(port)) as served:
        assert served.http.post("/api/model/load", json=body).status_code == 200
        wait_noted(tmp_path, ["e"])
        served.stop(signal.SIGKILL)
    with daemon(tmp_path, toml, "--port", str(port)) as served:
        wait_loaded(served)
        model = served.http.get("/api/model/status").json()["models"][0]
        assert len(model["workers"]) == 2
        served.stop(signal.SIGKILL)
    assert "died with e loaded" in (tmp_path / "daemon.log").read_text()
    with daemon(tmp_path, toml, "--port", str(port)) as served:
        assert served.http.get("/api/model/status").json()["models"] == []
        assert "died 2 times in 15 minutes, with e loaded" in (tmp_path / "daemon.log").read_text()
        assert served.http.post("/api/model/load", json=body).status_code == 200
        wait_noted(tmp_path, ["e"])
        assert served.stop() == 0
    with daemon(tmp_path, toml, "--port", str(port)) as served:
        assert served.http.get("/api/model/status").json()["models"] == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def wait_noted(folder: Path, names: list[str]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        noted = json.loads((folder / "state" / "control.journal.json").read_text())
        if [model["model"] for model in noted["models"]] == names:
            return
    raise AssertionError(noted)
