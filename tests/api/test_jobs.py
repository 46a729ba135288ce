"""POST /api/models/pull, /api/jobs and DELETE /api/models/{model}, over real pulls from a small hub; Ollama's, too."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flask.testing import FlaskClient

import model_files
from forgellm.api.app import create_app
from forgellm.api.pool import Pool
from forgellm.catalog import Downloads
from forgellm.config import Settings
from hub_server import COMMIT, Hub, hub_server

pytestmark = pytest.mark.process


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        source = model_files.llama_folder(tmp_path / "source")
        found.add("org/name", {each.name: each.read_bytes() for each in source.iterdir()})
        yield found


@pytest.fixture
def client(server: Hub) -> Iterator[FlaskClient]:
    downloads = Downloads()
    yield create_app(cast("Pool", SimpleNamespace(downloads=downloads)), Settings()).test_client()
    downloads.close()


def job_once(client: FlaskClient, job_id: str, *states: str) -> dict[str, Any]:
    pause = threading.Event()
    for _ in range(600):
        job: dict[str, Any] = client.get(f"/api/jobs/{job_id}").get_json()["job"]
        if job["state"] in states:
            return job
        pause.wait(0.05)
    pytest.fail(str(job))


def test_a_model_is_pulled_followed_and_removed(client: FlaskClient) -> None:
    answer = client.post("/api/models/pull", json={"model": "org/name"})
    assert answer.status_code == 200
    job = job_once(client, answer.get_json()["job"]["id"], "done", "failed")
    assert (job["state"], job["error"], job["done_bytes"]) == ("done", None, job["total_bytes"])
    assert [each["id"] for each in client.get("/api/jobs").get_json()["jobs"]] == [job["id"]]
    removed = client.delete("/api/models/org/name")
    assert (removed.status_code, removed.get_json()["freed_bytes"]) == (200, job["total_bytes"])
    again = client.delete("/api/models/org/name")
    assert (again.status_code, again.get_json()["code"]) == (404, "model_not_found")


def test_a_job_is_cancelled_and_its_model_is_in_use_until_then(client: FlaskClient, server: Hub) -> None:
    server.hold_at = 0
    job = client.post("/api/models/pull", json={"model": "org/name", "revision": "main"}).get_json()["job"]
    assert server.held.wait(30)
    refused = client.delete("/api/models/org/name")
    assert (refused.status_code, refused.get_json()["code"]) == (409, "model_in_use")
    assert client.delete(f"/api/jobs/{job['id']}").get_json()["job"]["state"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "../etc/passwd"}, "model"),
        ({"model": "org/name/more"}, "model"),
        ({"model": "org/name@a", "revision": "b"}, "revision"),
        ({"model": "org/name", "revision": "../main"}, "revision"),
        ({}, "model"),
    ],
)
def test_what_cannot_be_a_repository_is_refused_at_once(client: FlaskClient, body: dict[str, str], field: str) -> None:
    refused = client.post("/api/models/pull", json=body)
    assert (refused.status_code, refused.get_json()["field"]) == (400, field)


def test_only_repositories_of_the_cache_are_removed(client: FlaskClient) -> None:
    for path in ("smollm2@main", "/etc", "org--name", "org/../name"):
        refused = client.delete(f"/api/models/{path}")
        assert refused.status_code in {308, 400, 404}, path
    assert client.delete("/api/models/org--name").get_json()["field"] == "model"


def test_an_unknown_job_is_told(client: FlaskClient) -> None:
    for answer in (client.get("/api/jobs/pull-0"), client.delete("/api/jobs/pull-0")):
        assert (answer.status_code, answer.get_json()["code"]) == (404, "job_not_found")


# Ollama's dialect of the same


def places(client: FlaskClient) -> int:
    """Places in the gate that are taken."""
    found: int = client.application.extensions["forgellm"].gate.inside
    return found


def test_a_pull_of_ollama_is_a_stream_of_lines_and_its_delete_removes(client: FlaskClient) -> None:
    answer = client.post("/api/pull", json={"name": "org/name:latest", "insecure": False}, buffered=True)
    assert (answer.status_code, answer.mimetype) == (200, "application/x-ndjson")
    first, *between, last = [json.loads(line) for line in answer.text.splitlines()]
    assert (first, last) == ({"status": "pulling manifest"}, {"status": "success"})
    bars = [line for line in between if "digest" in line]
    assert {(bar["status"], bar["digest"]) for bar in bars} == {("pulling org/name", f"sha1:{COMMIT}")}
    assert bars[-1]["completed"] == bars[-1]["total"] > 0
    assert [bar["completed"] for bar in bars] == sorted(bar["completed"] for bar in bars)
    assert client.post("/api/pull", json={"model": "org/name", "stream": False}).get_json() == {"status": "success"}
    assert client.delete("/api/delete", json={"model": "org/name"}).get_json() == {"status": "success"}
    for unknown in ("org/name", "nobody"):
        again = client.delete("/api/delete", json={"model": unknown})
        assert (again.status_code, again.get_json()["code"]) == (404, "model_not_found")
    assert places(client) == 0


def test_a_client_of_ollama_that_leaves_does_not_end_the_pull(client: FlaskClient, server: Hub) -> None:
    """The next one joins it, or goes on where it was."""
    server.hold_at = 0
    answer = client.post("/api/pull", json={"model": "org/name"}, buffered=False)
    assert server.held.wait(30)
    assert places(client) == 1
    answer.close()
    assert places(client) == 0
    (job,) = client.get("/api/jobs").get_json()["jobs"]
    assert job["state"] == "running"
    server.go_on.set()
    assert client.post("/api/pull", json={"model": "org/name", "stream": False}).get_json() == {"status": "success"}
    assert len([path for path, *_ in server.asked if path.startswith("/cdn/")]) == 1


def test_a_pull_of_ollama_that_fails_says_so_in_its_last_line_or_its_status(client: FlaskClient, server: Hub) -> None:
    whole = client.post("/api/pull", json={"model": "org/nobody", "stream": False})
    streamed = client.post("/api/pull", json={"model": "org/nobody"}, buffered=True)
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert (whole.status_code, whole.get_json()["code"]) == (403, "hub_token_required"), "as the hub says without one"
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == whole.get_json()
    insecure = client.post("/api/pull", json={"model": "org/name", "insecure": True})
    assert (insecure.status_code, insecure.get_json()["field"]) == (400, "insecure")
    assert client.post("/api/pull", json={"model": "../name"}).get_json()["field"] == "model"
    assert places(client) == 0


def test_a_pull_of_ollama_that_somebody_cancels_ends_with_an_error(client: FlaskClient, server: Hub) -> None:
    server.hold_at = 0
    answer = client.post("/api/pull", json={"model": "org/name"}, buffered=False)
    assert server.held.wait(30)
    (job,) = client.get("/api/jobs").get_json()["jobs"]
    client.delete(f"/api/jobs/{job['id']}")
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["code"], "cancelled" in last["error"]) == ("unavailable", True)


def test_a_server_that_stops_lets_go_of_who_follows_a_pull(client: FlaskClient, server: Hub) -> None:
    server.hold_at = 0
    answer = client.post("/api/pull", json={"model": "org/name"}, buffered=False)
    assert server.held.wait(30)
    client.application.extensions["forgellm"].gate.drain()
    assert json.loads(answer.text.splitlines()[-1])["code"] == "shutting_down"
