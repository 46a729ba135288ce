"""Starts and ends what is measured from outside: ForgeLLM's daemon and mlx-lm's own server. Measures nothing."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.http_client import get
from benchmarks.measure import wait_until

START_S = 120.0
STOP_S = 30.0


@contextmanager
def daemon(config: str, settings: Mapping[str, str], models: list[str]) -> Iterator[int]:
    """`forgellm serve` with a TOML config and FORGELLM_* settings; yields its port once all models are ready."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file, tempfile.TemporaryDirectory() as state_dir:
        file.write(config)
        file.flush()
        command = [str(Path(sys.executable).with_name("forgellm")), "serve", "--port", str(port), "--config", file.name]
        for model in models:
            command += ["--model", model]
        with _process(command, {**os.environ, "FORGELLM_STATE_DIR": state_dir, **settings}):
            wait_until(lambda: _are_ready(port, models), START_S, 0.1)
            yield port


@contextmanager
def mlx_lm_server(folder: Path) -> Iterator[int]:
    """Stock `mlx_lm.server` on a model as it lies on the disk; yields its port once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port)]
    with _process(command, dict(os.environ)):
        wait_until(lambda: _answers(port, "/health"), START_S, 0.1)
        yield port


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def _process(command: list[str], env: dict[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            yield
        except Exception as error:
            log.seek(0)
            error.add_note(f"{' '.join(command)} said: {log.read()[-3000:].decode(errors='replace')}")
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        get(port, path)
    except (OSError, ValueError, RuntimeError):
        return False
    return True


def _are_ready(port: int, models: list[str]) -> bool:
    if not _answers(port, "/api/health"):
        return False
    states = {model["model_name"]: model for model in get(port, "/api/model/status")["models"]}
    for name, model in states.items():
        if model["state"] == "failed":
            raise RuntimeError(f"{name} failed: {model.get('error')}")
    return all(name in states and states[name]["state"] == "ready" for name in models)
