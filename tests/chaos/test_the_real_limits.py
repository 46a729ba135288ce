"""Hangs under the default limits: ended in time, with the stacks of all threads; a prefill of 100 s is left alone.

What takes the time runs in a process of its own (real_limits.py). It is started before the first test of this folder
that needs time (conftest.py) and judged here, in the last module: meanwhile it sleeps, and soak and replays run.
"""

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.chaos, pytest.mark.timeout(180)]

GRACE_S = 5.0
GAP_S = 1.0


@pytest.mark.parametrize(
    ("how", "limit_s", "clock"),
    [("gil", 15.0, "no heartbeat"), ("native", 60.0, "no progress"), ("python", 60.0, "no progress")],
)
def test_chaos_017_018_019_a_hang_is_ended_within_its_limit_and_five_seconds(
    real_limits: dict[str, Any], how: str, limit_s: float, clock: str
) -> None:
    found = real_limits[how]
    assert limit_s - 1 < found["took_s"] < limit_s + GRACE_S
    assert clock in found["reason"]
    assert "in _hang" in found["stacks"]
    assert found["again"] == "still here"


def test_a_prefill_of_a_hundred_seconds_that_reports_progress_is_not_touched(real_limits: dict[str, Any]) -> None:
    found = real_limits["prefill"]
    assert (found["text"], found["restarts"]) == ("one two three", 0)
    assert found["took_s"] >= 100
    assert found["reports"] > 2


def test_the_stream_of_another_model_has_no_gap_meanwhile(real_limits: dict[str, Any]) -> None:
    assert real_limits["gap_s"] < GAP_S


def test_nothing_of_it_is_left(real_limits: dict[str, Any]) -> None:
    assert real_limits["left"] == []
