"""/api/events: the picture, then every change, to each who follows."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from live import Live, live, wait_until

pytestmark = pytest.mark.process

Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models: dict[str, dict[str, Any]] = {"e": {}, "late": {"load_s": 0.3}}
    with live(tmp_path_factory.mktemp("events"), models) as found:
        yield found


@contextmanager
def followed(api: Live) -> Iterator[Iterator[Event]]:
    """The events of one connection, as they come."""
    with api.http.stream("GET", "/api/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield parsed(response)


def parsed(response: httpx2.Response) -> Iterator[Event]:
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, msgspec.json.decode(value)


def until(events: Iterator[Event], name: str, **wanted: Any) -> list[Event]:
    """The events up to the first of that name with these values."""
    seen = []
    for event in events:
        seen.append(event)
        if event[0] == name and wanted.items() <= event[1].items():
            return seen
    raise AssertionError(f"it ended before {name} {wanted}: {seen}")


def test_a_load_a_death_and_an_unload_are_followed(api):
    with followed(api) as events:
        assert next(events) == ("snapshot", {"models": []})
        api.http.post("/api/model/load", json={"model": "late"})
        loading = until(events, "state", to="ready")
        assert [event["to"] for name, event in loading if name == "state"] == ["starting", "loading", "ready"]
        assert {"late#1"} == {event["worker"] for _, event in loading}
        assert all(0 <= event["progress"] <= 1 for name, event in loading if name == "progress")
        assert any(name == "progress" for name, _ in loading)
        os.kill(api.status("late")["pid"], signal.SIGKILL)
        again = until(events, "state", to="ready")
        assert [event["cause"] for name, event in again if name == "death"] == ["killed"]
        assert [event["to"] for name, event in again if name == "state"] == ["backoff", "starting", "loading", "ready"]
        api.http.post("/api/model/unload", json={"model": "late"})
        until(events, "state", to="stopped")


def test_an_eviction_says_why(api):
    with followed(api) as events:
        api.load("e", ttl_s=0.1)
        (*_, (_, evicted)) = until(events, "eviction")
        assert (evicted["model"], evicted["cause"], evicted["reason"]) == ("e", "idle", "idle for 0.1 s")
        until(events, "state", to="stopped")


def test_who_comes_later_gets_the_picture_first(api):
    api.load("e")
    with followed(api) as events:
        name, picture = next(events)
    assert (name, [model["model_name"] for model in picture["models"]]) == ("snapshot", ["e"])
    assert picture["models"][0]["state"] == "ready"


def test_followers_that_leave_are_forgotten(api):
    for _ in range(3):
        with followed(api) as events:
            next(events)
    wait_until(lambda: api.pool._watches._all == ())


def test_followers_hold_places_and_are_bounded_by_them(tmp_path: Path):
    with live(tmp_path, {"e": {}}, max_streams=1) as found, followed(found) as events:
        next(events)
        assert found.http.get("/api/events").status_code == 503


def test_a_server_that_stops_says_so_and_waits_for_no_follower(tmp_path: Path):
    with live(tmp_path, {"e": {}}) as found, followed(found) as events:
        next(events)
        found.gate.drain()
        assert list(events)[-1] == ("end", {"reason": "the server is stopping"})
        assert found.gate.wait_empty(5)
