"""A daemon as a process of its own, for tests that look at it from outside."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Daemon:
    process: subprocess.Popen[str]
    url: str
    http: httpx2.Client
    folder: Path

    def family(self) -> list[psutil.Process]:
        """Every living descendant."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_idle(self, model: str, timeout_s: float = 5.0) -> None:
        """Return when the model answers nothing any more; fail after the timeout."""
        deadline = time.monotonic() + timeout_s
        while self.http.get("/api/model/status", params={"model": model}).json()["in_flight"]:
            assert time.monotonic() < deadline, f"{model} still answers"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def daemon(
    folder: Path,
    toml: str = "",
    *flags: str,
    start: list[str] | None = None,
    share_cache: bool = False,
    pass_fds: tuple[int, ...] = (),
) -> Iterator[Daemon]:
    """Run `forgellm-supervisor` on a free port with the settings in `toml`; SIGKILL what is left of it at the end.

    `share_cache`: the cache folder is the user's, where the demo model may be already, instead of `folder`."""
    config = folder / "forgellm.toml"
    config.write_text(toml, "utf-8")
    command = start or [sys.executable, "-m", "forgellm.daemon"]
    own = {"LOG_DIR": "logs", "STATE_DIR": "state", "KEYS_FILE": "keys.json"}
    env = {**os.environ, **{f"FORGELLM_{name}": str(folder / place) for name, place in own.items()}}
    if not share_cache:
        env["FORGELLM_CACHE_DIR"] = str(folder)
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--config", str(config), "--port", "0", "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
            pass_fds=pass_fds,
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            line = process.stdout.readline() if readable else ""
            assert line, f"it did not start: {(folder / 'daemon.log').read_text()}"
            url = json.loads(line)["url"]
            with httpx2.Client(base_url=url, timeout=20, trust_env=False) as http:
                yield Daemon(process, url, http, folder)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def still_running(family: list[psutil.Process], timeout_s: float = 5.0) -> list[psutil.Process]:
    """Which of these processes do not end in time."""
    _, alive = psutil.wait_procs(family, timeout=timeout_s)
    return list(alive)
