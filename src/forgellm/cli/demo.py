"""`forgellm demo`: a daemon, an answer, a worker killed before your eyes, the same answer again. Tells no lies.

Everything goes through the daemon's HTTP API and the system's own process table, as an outsider would see it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any

import click
import msgspec
import psutil

from forgellm.cli.ask import pace
from forgellm.cli.client import Client
from forgellm.cli.show import watch_load
from forgellm.errors import ForgeLLMError
from forgellm.supervisor.budget import size

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"
START_TIMEOUT_S = 30.0
RESPAWN_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 45.0
GRACE_S = 5.0
POLL_S = 0.02

Status = dict[str, Any]


class _Failed(Exception):
    """The demo did not show what it promises; the text says what."""


def run_demo(model: str, *, as_json: bool) -> int:
    """Run it all; returns the exit code, 0 only if every step held."""
    show = _Steps(as_json)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="forgellm-") as state_dir:
        daemon = _start_daemon(log, state_dir)
        try:
            url = _ready_url(daemon)
            show.step("daemon", f"the daemon is process {daemon.pid}, at {url}", pid=daemon.pid, url=url)
            with Client(url) as client:
                _play(client, model, show)
            left = _stop(daemon)
            if left:
                raise _Failed(f"left running: {', '.join(left)}")
            show.step("stopped", "the daemon stopped, and nothing is left running")
        except (_Failed, ForgeLLMError) as error:
            log.seek(0)
            tail = log.read()[-4000:].decode(errors="replace")
            click.echo(f"{tail}\nError: the demo failed: {error}", err=True)
            return 1
        finally:
            if daemon.poll() is None:
                _stop(daemon)
            daemon.stdout.close()  # type: ignore[union-attr]  # it is a PIPE
    return 0


class _Steps:
    """Prints what happens, for people or as lines of JSON."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def step(self, name: str, text: str, **facts: Any) -> None:
        click.echo(msgspec.json.encode({"step": name, **facts}).decode() if self.as_json else f"• {text}")

    def token(self, text: str) -> None:
        if not self.as_json:
            click.echo(text, nl=False)


def _play(client: Client, model: str, show: _Steps) -> None:
    began = time.monotonic()
    client.post("/api/model/load", {"model_name": model})
    status = watch_load(model, lambda: client.get("/api/model/status", model=model), quiet=show.as_json)
    pid, used = status["pid"], status["memory"]["footprint"]
    load_s = round(time.monotonic() - began, 2)
    show.step(
        "loaded",
        f"{model} loaded in {load_s:.1f} s by worker process {pid}",
        pid=pid,
        seconds=load_s,
        life=status["life"],
    )
    _ask(client, model, show)
    used = client.get("/api/model/status", model=model)["memory"]["footprint"] or used
    show.step("memory", f"worker {pid} uses {size(used)}", pid=pid, footprint_bytes=used)

    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    show.step("killed", f"kill -9 {pid}", pid=pid)
    status = _respawned(client, model, status["life"])
    respawn_s = round(time.monotonic() - killed, 2)
    text = f"a new worker, process {status['pid']}, is ready {respawn_s:.2f} s after the kill"
    show.step("respawned", text, pid=status["pid"], seconds=respawn_s, life=status["life"])
    _ask(client, model, show)


def _ask(client: Client, model: str, show: _Steps) -> None:
    show.token(f"\n  > {QUESTION}\n  ")
    pieces: list[str] = []
    final: Status = {}
    for event in client.generate({"model": model, "prompt": QUESTION, "temperature": 0, "max_tokens": 40}):
        if event["type"] == "complete":
            final = event
        else:
            pieces.append(event["text"])
            show.token(event["text"])
    show.token("\n\n")
    answer = "".join(pieces)
    show.step("answered", pace(final), answer=answer, **{k: v for k, v in final.items() if k != "type"})
    if EXPECTED not in answer:
        raise _Failed(f"the answer to {QUESTION!r} has no {EXPECTED}: {answer!r}")


def _respawned(client: Client, model: str, dead_life: int) -> Status:
    deadline = time.monotonic() + RESPAWN_TIMEOUT_S
    while time.monotonic() < deadline:
        status: Status = client.get("/api/model/status", model=model)
        if status["loaded"] and status["life"] != dead_life:
            return status
        time.sleep(POLL_S)
    raise _Failed(f"no new worker within {RESPAWN_TIMEOUT_S:.0f} s: {status['state']}")


def _start_daemon(log: IO[bytes], state_dir: str) -> "subprocess.Popen[bytes]":
    """A daemon of its own, beside whatever else runs, that asks for no key."""
    command = [sys.executable, "-m", "forgellm.daemon", "--port", "0", "--json"]
    env = {**os.environ, "FORGELLM_STATE_DIR": state_dir, "FORGELLM_KEYS_FILE": f"{state_dir}/keys.json"}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=env)


def _ready_url(daemon: "subprocess.Popen[bytes]") -> str:
    """The address that the daemon prints once it serves."""
    assert daemon.stdout is not None  # noqa: S101 - for mypy: _start_daemon asked for a pipe
    readable, _, _ = select.select([daemon.stdout], [], [], START_TIMEOUT_S)
    line = daemon.stdout.readline() if readable else b""
    if not line:
        raise _Failed(f"the daemon did not answer within {START_TIMEOUT_S:.0f} s")
    return str(msgspec.json.decode(line)["url"])


def _stop(daemon: "subprocess.Popen[bytes]") -> list[str]:
    """SIGTERM, and wait; returns what of the daemon and its descendants still runs then."""
    try:
        family = psutil.Process(daemon.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    daemon.terminate()
    try:
        code = daemon.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(GRACE_S)
        return [f"the daemon, {daemon.pid}, until it was killed"]
    if code != 0:
        raise _Failed(f"the daemon ended with exit code {code}")
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    return [f"process {process.pid}" for process in alive]
