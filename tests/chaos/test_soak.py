"""The random soak, as `make soak` runs it, in short."""

import json
import sys
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from benchmarks.soak import is_good, schedule

ROOT = Path(__file__).parents[2]
SECONDS = 60


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
@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_is_left_while_workers_die_at_random() -> None:
    """Twice at the same time, so that it costs a minute once: with the pool beside its clients, and in a daemon."""
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", str(SECONDS), "--json"]
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(Popen([*command, *flags], cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True))
            for name, flags in {"in process": [], "daemon": ["--daemon"]}.items()
        }
        for name, run in runs.items():
            said, errors = run.communicate(timeout=200)
            assert said, errors
            found = json.loads(said)
            print(name, found)
            assert is_good(found), found
            assert run.returncode == 0
            assert sum(found["strikes"].values()) >= SECONDS / 3
