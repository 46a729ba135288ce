"""A real Prometheus scrapes a real daemon."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from daemons import daemon

PROMETHEUS = shutil.which("prometheus")
DEADLINE_S = 20.0

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus (Debian: the package prometheus) is not installed"),
]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx2.Client]:
    """A Prometheus that scrapes `target` four times a second."""
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\n"
        f"scrape_configs: [{{job_name: forgellm, static_configs: [{{targets: ['{target}']}}]}}]\n",
        "utf-8",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    data = folder / "data"
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={data}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://{address}", timeout=5, trust_env=False) as http:
            yield http
    finally:
        process.terminate()
        process.wait(10)


def query(http: httpx2.Client, text: str) -> float | None:
    """The one value of an instant query, or None while there is none."""
    try:
        found = http.get("/api/v1/query", params={"query": text}).json()["data"]["result"]
    except (httpx2.HTTPError, KeyError, ValueError):
        return None  # it is still starting
    return float(found[0]["value"][1]) if found else None


def test_a_prometheus_scrapes_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "daemon").mkdir()
    with daemon(tmp_path / "daemon", '[models.e]\nsource = "echo"\npreload = true\n') as served:
        served.http.post("/api/model/load", json={"model": "e", "wait": True})
        served.http.post("/api/model/generate", json={"model": "e", "prompt": "one two three"})
        with prometheus(tmp_path, served.url.removeprefix("http://")) as http:
            deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
            while query(http, 'forgellm_requests_total{model="e",finish_reason="stop"}') != 1:
                assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
                pause.wait(0.1)
            assert query(http, 'up{job="forgellm"}') == 1
            assert query(http, "histogram_quantile(0.5, forgellm_time_between_tokens_seconds_bucket)") is not None
        assert served.stop() == 0
