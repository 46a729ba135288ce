"""POST /api/admin/drain over HTTP, on a real pool."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from live import DEADLINE_S, Live, live, wait_until

pytestmark = pytest.mark.process

DRAIN = "/api/admin/drain"
WORDS = " ".join(map(str, range(60)))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {"e": {"tokens_per_s": 60.0}, "other": {}}
    with live(tmp_path_factory.mktemp("operations"), models) as found:
        found.load("e")
        found.load("other")
        yield found


def answers_of(api: Live, count: int, **body: Any) -> tuple[list[dict[str, Any]], list[threading.Thread]]:
    """Ask in the background; what is answered comes into the list."""
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: found.append(api.generate(WORDS, model="e", **body).json()))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: api.status("e")["in_flight"] == count)
    return found, threads


def test_a_drain_lets_what_runs_finish_and_refuses_what_is_new_until_it_is_resumed(api: Live) -> None:
    found, threads = answers_of(api, 2)
    reports: list[dict[str, Any]] = []
    drain = threading.Thread(target=lambda: reports.append(api.http.post(DRAIN, json={"model": "e"}).json()))
    drain.start()
    wait_until(lambda: bool(api.status("e")["draining"]))
    refused = api.generate(model="e")
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert int(refused.headers["Retry-After"]) >= 1
    assert api.generate("hello", model="other").json()["text"] == "hello"
    for thread in (*threads, drain):
        thread.join(DEADLINE_S)
    assert [answer["text"] for answer in found] == [WORDS] * 2
    counts = {name: reports[0][name] for name in ("finished", "moved", "aborted", "left")}
    assert counts == {"finished": 2, "moved": 0, "aborted": 0, "left": 0}
    assert 0 < reports[0]["took_s"] < DEADLINE_S
    assert api.http.post(DRAIN, json={"model": "e", "resume": True}).json()["success"] is True
    assert api.generate("hello", model="e").json()["text"] == "hello"


def test_the_whole_pool_is_drained_by_its_deadline_and_it_is_not_ready(api: Live) -> None:
    found, threads = answers_of(api, 1)
    report = api.http.post(DRAIN, json={"timeout_s": 0.1}).json()
    assert (report["aborted"], report["finished"]) == (1, 0)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found[0]["finish_reason"] == "abort"
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["it is drained"])
    assert api.generate(model="other").json()["code"] == "draining"
    assert api.http.post(DRAIN, json={"resume": True}).status_code == 200
    assert api.http.get("/readyz").status_code == 200
    assert api.generate("hello", model="other").json()["text"] == "hello"


def test_a_drain_that_cannot_be_is_refused(api: Live) -> None:
    assert api.http.post(DRAIN, json={"model": "nobody"}).json()["code"] == "model_not_loaded"
    refused = api.http.post(DRAIN, json={"resume": True, "timeout_s": 1})
    assert (refused.status_code, refused.json()["field"]) == (400, "timeout_s")
