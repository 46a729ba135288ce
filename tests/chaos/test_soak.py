"""The random soak, as `make soak` runs it, in short."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.soak import is_good, schedule

ROOT = Path(__file__).parents[2]
SECONDS = 20


def test_a_seed_replays_the_same_strikes() -> None:
    assert list(islice(schedule(7), 100)) == list(islice(schedule(7), 100))
    assert list(islice(schedule(7), 100)) != list(islice(schedule(8), 100))


@pytest.mark.parametrize("wrong", [{"lost": 1}, {"different": 1}, {"leaks": {"threads": 1}}, {"strikes": {}}])
def test_a_soak_that_lost_or_left_something_is_not_good(wrong: dict[str, object]) -> None:
    fine = {"lost": 0, "different": 0, "leaks": {}, "left_after_stop": {}, "strikes": {"SIGKILL, ready": 1}}
    assert is_good({**fine, "requests": 1})
    assert not is_good({**fine, "requests": 1, **wrong})


@pytest.mark.process
@pytest.mark.chaos
def test_nothing_is_lost_and_nothing_is_left_while_workers_die_at_random() -> None:
    """In a process of its own, so that what is counted as leaked is the pool's."""
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", str(SECONDS), "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert run.stdout, run.stderr
    found = json.loads(run.stdout)
    print(found)
    assert is_good(found), found
    assert run.returncode == 0
    assert sum(found["strikes"].values()) >= SECONDS / 3
