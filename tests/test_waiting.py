"""Waits are judged by what programs are to blame for."""

import time
from types import SimpleNamespace

import psutil
import pytest

from waiting import Longest


def test_the_longest_wait_leaves_out_what_the_host_took_from_the_processor_that_it_took_most_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, taken = 100.0, [SimpleNamespace(steal=5.0), SimpleNamespace(steal=7.0)]
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: list(taken))
    waits = Longest()
    now += 0.5
    waits.end()
    assert (waits.count, waits.longest_s) == (1, 0.5)
    now, taken = now + 1.5, [SimpleNamespace(steal=5.25), SimpleNamespace(steal=8.0)]
    waits.end()
    assert (waits.count, waits.longest_s) == (2, 0.5)
    now += 3.0
    waits.start()
    now += 0.75
    waits.end()
    assert (waits.count, waits.longest_s) == (3, 0.75)


def test_where_no_host_tells_what_it_takes_the_longest_wait_is_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [SimpleNamespace(user=1.0)])
    waits = Longest()
    now += 2.0
    waits.end()
    assert waits.longest_s == 2.0
