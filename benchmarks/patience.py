"""How long status takes while everything is busy, and how soon a killed worker is back."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.http_client import HttpStreams, forgellm, get, post
from benchmarks.measure import median, percentile, prompts, wait_until
from benchmarks.report import Report
from benchmarks.servers import daemon

PAUSE_S = 0.01
KILLS = 3
DEADLINE_S = 120.0
BARE_LOAD = "import sys; from mlx_lm.utils import load; load(sys.argv[1])"


def status_under_load(report: Report, title: str, model: str, config: str) -> None:
    """GET /api/model/status, again and again, while `second` loads and 8 streams of `model` run."""
    with daemon(config, {}, [model]) as port:
        streams = threading.Thread(target=HttpStreams(port, forgellm(model)), args=(prompts(8), 48))
        streams.start()
        wait_until(lambda: get(port, "/api/model/status")["models"][0]["in_flight"] == 8, DEADLINE_S)
        post(port, "/api/model/load", {"model_name": "second"})
        times: list[float] = []
        while streams.is_alive() or get(port, "/api/model/status?model=second")["state"] != "ready":
            started = time.perf_counter()
            get(port, "/api/model/status")
            times.append(time.perf_counter() - started)
            time.sleep(PAUSE_S)
        streams.join()
    report.value(title, f"p50 of {len(times)}", percentile(times, 0.5) * 1000, "ms")
    report.value(title, "p99", percentile(times, 0.99) * 1000, "ms")
    report.goal("status while loading and 8 streams: p99 < 25 ms", percentile(times, 0.99) * 1000, 25, at_least=False)
    report.show(title)


def recovery(report: Report, title: str, model: str, folder: Path, layout: str) -> None:
    """SIGKILL to ready again, with the warm spare, beside a fresh process that loads the same model with mlx-lm."""
    config = f'[models.again]\nsource = "{model}"\nlayout = "{layout}"\n'
    with daemon(config, {"FORGELLM_CRASH_WINDOW_S": "1"}, ["again"]) as port:  # each death counts as the first
        killed, bare = [], []
        for _ in range(KILLS):
            wait_until(lambda: bool(get(port, "/api/model/status")["spare"]["is_warm"]), DEADLINE_S, 0.1)
            time.sleep(1.5)
            killed.append(_kill(port))
            wait_until(lambda: bool(get(port, "/api/model/status")["spare"]["is_warm"]), DEADLINE_S, 0.1)
            bare.append(_bare_load(folder))
    report.value(title, "ForgeLLM: SIGKILL to ready", median(killed), "s")
    report.value(title, "bare: mlx_lm.load in a fresh process", median(bare), "s")
    report.goal("SIGKILL to ready ÷ bare load < 1", median(killed) / median(bare), 1, at_least=False)
    report.show(title)


def _kill(port: int) -> float:
    """Seconds from the kill until the status names another process that is ready."""
    before = get(port, "/api/model/status")["pid"]
    os.kill(before, signal.SIGKILL)

    def is_back() -> bool:
        status = get(port, "/api/model/status")
        return status["state"] == "ready" and status["pid"] != before

    return wait_until(is_back, DEADLINE_S)


def _bare_load(folder: Path) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", BARE_LOAD, str(folder)], check=True, capture_output=True, timeout=DEADLINE_S)
    return time.monotonic() - started
