"""POST /api/model/plan and what a load says that does not fit, over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Live, live

pytestmark = pytest.mark.process

MB = 1_000_000
PLAN = "/api/model/plan"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "idle": {"allocate_bytes": 50 * MB},
        "big": {"allocate_bytes": 60 * MB},
        "huge": {"allocate_bytes": 10**9},
    }
    folder: Path = tmp_path_factory.mktemp("plan")
    with live(folder, models, memory_budget_bytes=100 * MB, memory_soft_limit=1.0) as found:
        found.load("idle")
        yield found


def test_a_plan_names_the_need_the_budget_and_who_would_go_and_changes_nothing(api: Live) -> None:
    answer = api.http.post(PLAN, json={"model": "big"}).json()
    assert answer["need_bytes"] == {"weights": 60 * MB, "kv": 0, "runtime": 0, "transient": 6 * MB, "total": 66 * MB}
    assert (answer["fits"], answer["must_wait"], answer["would_evict"]) == (True, True, ["idle"])
    assert answer["budget_bytes"] == 100 * MB
    assert answer["reserved_bytes"] >= 50 * MB
    assert (answer["success"], answer["reason"]) == (True, "")
    assert [model["model_name"] for model in api.status()["models"]] == ["idle"]


def test_a_plan_that_does_not_fit_is_an_answer_and_the_load_an_error_with_the_same_words(api: Live) -> None:
    plan = api.http.post(PLAN, json={"model": "huge"}).json()
    assert (plan["success"], plan["fits"], plan["would_evict"]) == (True, False, [])
    refused = api.http.post("/api/model/load", json={"model": "huge"})
    assert (refused.status_code, refused.json()["code"]) == (503, "insufficient_memory")
    assert refused.json()["error"] == plan["reason"]
    assert "Retry-After" in refused.headers


def test_a_plan_refuses_what_a_load_refuses(api: Live) -> None:
    assert api.http.post(PLAN, json={"model": "nobody"}).status_code == 404
    assert api.http.post(PLAN, json={"model": "big", "replica": 2}).status_code == 400
    assert api.http.post(PLAN, json={"model": "big", "replicas": 2}).json()["fits"] is False


def test_a_plan_has_nothing_to_wait_for(api: Live) -> None:
    refused = api.http.post(PLAN, json={"model": "big", "wait": True})
    assert (refused.status_code, refused.json()["field"]) == (400, "wait")
