"""Request ids from end to end, and the access log: one line a request, without a prompt."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import GENERATE, Live, live, wait_until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models: dict[str, dict[str, Any]] = {"e": {}, "slow": {"text": "w " * 1000, "tokens_per_s": 100}}
    with live(tmp_path_factory.mktemp("access"), models) as found:
        found.load("e")
        found.load("slow")
        yield found


def lines(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """The data of so many access lines; they are written just after the client has its answer."""
    wait_until(lambda: len([r for r in caplog.records if r.name == "forgellm.access"]) >= count)
    found = [record for record in caplog.records if record.name == "forgellm.access"]
    return [record.data for record in found]  # type: ignore[attr-defined]


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, "forgellm"):
        yield caplog


def test_an_answer_is_one_line_that_says_what_it_cost(api, access):
    response = api.generate("one two secret", model="e")
    (line,) = lines(access, 1)
    assert 0 < line.pop("duration_s") < 20
    assert line == {
        "request_id": response.headers["X-Request-Id"],
        "client": "127.0.0.1",
        "method": "POST",
        "path": GENERATE,
        "status": 200,
        "model": "e",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 3,
    }
    assert "secret" not in access.text


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_id_goes_through_to_the_supervisor(api, access, stream):
    with api.http.stream(
        "POST", GENERATE, json={"model": "e", "prompt": "x", "stream": stream}, headers={"X-Request-Id": "job-7/a"}
    ) as response:
        response.read()
    assert response.headers["X-Request-Id"] == "job-7/a"
    (line,) = lines(access, 1)
    assert line["request_id"].endswith(":job-7/a")
    said = [record.getMessage() for record in access.records if record.name == "forgellm.supervisor"]
    assert f"request {line['request_id']} ended: stop" in said


def test_two_requests_under_one_id_are_two(api, access):
    """A proxy that tries again while the first still runs."""
    header = {"X-Request-Id": "twice"}
    with api.http.stream(
        "POST", GENERATE, json={"model": "slow", "prompt": "x", "stream": True, "max_tokens": 30}, headers=header
    ) as first:
        second = api.http.post(GENERATE, json={"model": "e", "prompt": "a b"}, headers=header)
        assert second.json()["text"] == "a b"
        assert len(first.read().splitlines()) > 5
    assert len({line["request_id"] for line in lines(access, 2)}) == 2


@pytest.mark.parametrize("strange", ["", "x" * 129, "a b", "ä", "<script>", "a;b"])
def test_an_id_that_is_not_sane_is_replaced(api, strange):
    response = api.http.get("/healthz", headers={"X-Request-Id": strange.encode()})
    assert response.headers["X-Request-Id"].startswith("req-")


def test_refused_requests_have_a_name_and_a_line_too(api, access):
    wrong = api.generate("", model="e")
    nowhere = api.http.get("/nowhere?secret=1")
    foreign = api.http.get("/api/models", headers={"Host": "evil.example"})
    found = lines(access, 3)
    assert [line["status"] for line in found] == [400, 404, 403]
    assert [line["request_id"] for line in found] == [
        response.headers["X-Request-Id"] for response in (wrong, nowhere, foreign)
    ]
    assert found[1]["path"] == "/nowhere"


def test_probes_are_told_only_at_debug(api, access):
    access.set_level(logging.INFO, "forgellm.access")
    for path in ("/healthz", "/readyz", "/metrics", "/api/model/status"):
        api.http.get(path)
    api.http.get("/api/models")
    assert [line["path"] for line in lines(access, 1)] == ["/api/models"]


def test_a_client_that_goes_away_is_a_line_as_well(api, access):
    with api.http.stream("POST", GENERATE, json={"model": "slow", "prompt": "x", "stream": True}) as response:
        next(response.iter_raw())
    (line,) = lines(access, 1)
    assert line["finish_reason"] in {"abort", "error"}
    assert line["completion_tokens"] < 1000


def test_the_folder_of_the_logs_is_in_the_status(api, tmp_path: Path):
    status = api.status("e")
    assert Path(f"{status['log_stem']}{status['life']}.log").is_file()
