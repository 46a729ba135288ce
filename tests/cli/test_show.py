"""The tables of the command line."""

from typing import Any

import pytest

from forgellm.cli.show import show_workers


def model(**more: Any) -> dict[str, Any]:
    worker = {
        "name": "m#1",
        "state": "ready",
        "pid": 7,
        "life": 1,
        "restarts": 0,
        "memory": {"footprint": 1 << 20},
        "in_flight": 0,
        "since": 0.0,
    }
    return {"workers": [worker], "queue_depth": 0, "draining": False, **more}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"error": "it crashed [/last] [log line]"}, "it crashed [/last] [log line]"),
        ({"warnings": ["unverified: x", "outdated: its settings name other files"]}, "outdated: its settings name"),
    ],
    ids=["an error, in its own words", "other files that do not fit"],
)
def test_what_is_wrong_with_a_model_stands_below_its_workers(
    more: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    show_workers({"models": [model(**more)]})
    _, worker, wrong = capsys.readouterr().out.splitlines()
    assert worker.startswith("m#1")
    assert says in wrong
    assert "unverified" not in wrong
