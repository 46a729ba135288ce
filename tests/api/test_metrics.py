"""What Prometheus and a load balancer see of a pool that works, dies and stalls."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, live, wait_until

pytestmark = pytest.mark.process

PROMTOOL = shutil.which("promtool")
LONG = " ".join(["word"] * 500)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "e": {},
        "slow": {"text": LONG, "tokens_per_s": 100},
        "stuck": {"prefill_s": 600.0},
        "broken": {"load_error": "model_invalid: model.safetensors is cut short"},
    }
    with live(tmp_path_factory.mktemp("seen"), models, readiness_timeout_s=0.3) as found:
        found.load("e")
        yield found


def sample(api: Live, name: str, **labels: str) -> float:
    """The value of one series; 0 if there is none."""
    for line in api.http.get("/metrics").text.splitlines():
        if line.startswith(name) and all(f'{label}="{value}"' in line for label, value in labels.items()):
            series, _, value = line.rpartition(" ")
            if re.match(rf"{name}(\{{|$)", series):
                return float(value)
    return 0.0


def test_answers_are_counted(api):
    before = sample(api, "forgellm_requests_total", model="e", finish_reason="stop")
    api.generate("one two three", model="e")
    assert sample(api, "forgellm_requests_total", model="e", finish_reason="stop") == before + 1
    assert sample(api, "forgellm_completion_tokens_total", model="e") >= 3
    assert sample(api, "forgellm_time_to_first_token_seconds_count", model="e") >= 1
    assert sample(api, "forgellm_time_between_tokens_seconds_count", model="e") >= 2
    assert sample(api, "forgellm_workers", model="e", state="ready") == 1
    assert sample(api, "forgellm_workers", model="e", state="failed") == 0
    assert sample(api, "forgellm_worker_load_seconds_count", model="e") == 1
    assert sample(api, "forgellm_memory_budget_bytes") > 0


def test_a_killed_worker_is_a_death_and_a_replay(api):
    api.load("slow")
    answered: list[str] = []
    client = threading.Thread(target=lambda: answered.append(api.generate(model="slow", max_tokens=60).json()["text"]))
    client.start()
    wait_until(lambda: sample(api, "forgellm_completion_tokens_total", model="slow") > 5)
    assert sample(api, "forgellm_running_requests", model="slow") == 1
    os.kill(api.status("slow")["pid"], signal.SIGKILL)
    client.join(20)
    assert answered == [" ".join(["word"] * 60)]
    assert sample(api, "forgellm_worker_deaths_total", model="slow", reason="killed") == 1
    assert sample(api, "forgellm_replays_total", model="slow") == 1
    assert sample(api, "forgellm_worker_load_seconds_count", model="slow") == 2
    api.http.post("/api/model/unload", json={"model": "slow"})


def test_a_client_cannot_add_series(api):
    for number in range(3):
        api.generate(model=f"made-up-{number}")
    text = api.http.get("/metrics").text
    assert "made-up" not in text
    assert sample(api, "forgellm_request_errors_total", model="", code="model_not_found") >= 3


def test_both_formats_are_served(api):
    plain = api.http.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    open_metrics = api.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert open_metrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: the package prometheus) is not installed")
def test_promtool_finds_nothing_to_mend(api):
    """Names, units, help texts and types as Prometheus's own linter wants them."""
    api.generate("one two three", model="e")
    text = api.http.get("/metrics").text
    check = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_a_failed_load_makes_it_degraded_and_a_stalled_request_not_ready(api):
    assert api.http.get("/readyz").json() == {"status": "ok", "reasons": []}
    api.http.post("/api/model/load", json={"model": "broken", "wait": True})
    found = api.http.get("/readyz")
    assert (found.status_code, found.json()["status"]) == (200, "degraded")
    assert "cut short" in found.json()["reasons"][0]
    api.http.post("/api/model/unload", json={"model": "broken"})
    api.http.post("/api/model/unload", json={"model": "e"})
    api.load("stuck")
    client = threading.Thread(target=lambda: api.generate(model="stuck", timeout_s=2.5))
    client.start()
    wait_until(lambda: any("no progress for" in reason for reason in api.http.get("/readyz").json()["reasons"]))
    assert api.http.get("/readyz").status_code == 503
    assert api.http.get("/healthz").status_code == 200
    client.join(20)
    wait_until(lambda: api.http.get("/readyz").status_code == 200)
    api.http.post("/api/model/unload", json={"model": "stuck", "force": True})
    api.load("e")


def test_a_supervisor_that_has_ended_is_alive_and_not_ready(tmp_path: Path):
    with live(tmp_path, {"e": {}}) as found:
        found.pool.stop()
        assert found.http.get("/healthz").status_code == 200
        ready = found.http.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert found.http.get("/metrics").json()["code"] == "shutting_down"
