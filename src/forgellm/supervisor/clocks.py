"""Two clocks for each worker: does its heart beat, and does its work get on? Pure: counters and the time go in.

Must not act on its verdicts, nor read a clock. Counters are compared by change only, against the supervisor's time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

GAP_S = 5.0
"""Looks further apart than this mean that the supervisor itself stood still (a laptop that slept, a starved machine):
nothing can be said about the time between, and all clocks start anew."""

WAKE_S = 0.1
"""From SIGCONT, as a worker that was stopped can write nothing, to the signal that makes it write the stacks of its
threads to its log. Sent at once, any thread of those that wake may take it, and runs beside the main thread whose stack
it writes, which can crash (CPython 3.11). Linux prefers the main thread of a process that runs. Whether the wait makes
crashes rarer was not shown: see decision 0006."""

DUMP_S = 1.0
"""From the signal that makes a worker write the stacks of its threads to its log, to SIGKILL."""


class Pulse(NamedTuple):
    """What one worker's counters say, and where its log is."""

    beats: int
    steps: int
    log_path: str


@dataclass(frozen=True, slots=True)
class _Seen:
    pulse: Pulse
    beat_at: float  # when `beats` was first seen as it is
    step_at: float  # when `steps` was, or when there was nothing to do


class WorkerClocks:
    """The last change of every worker's counters."""

    def __init__(self, hang_timeout_s: float) -> None:
        self.hang_timeout_s = hang_timeout_s
        self._seen: dict[int, _Seen] = {}
        self._looked_at = -math.inf

    def look(self, pulses: Mapping[int, Pulse], stall_limits: Mapping[int, float], now: float) -> dict[int, str]:
        """{life: why it must be killed, in words}, for those that hang or are stuck.

        `stall_limits` has the lives to watch (those that have said hello), and for how many seconds each may go
        without a step: infinite for one that has nothing to do."""
        if now - self._looked_at > GAP_S:
            self._seen = {}
        self._looked_at = now
        watched = {life: pulse for life, pulse in pulses.items() if life in stall_limits}
        self._seen = {life: self._update(life, pulse, stall_limits[life], now) for life, pulse in watched.items()}
        verdicts = {}
        for life, seen in self._seen.items():
            silent_s, stalled_s = now - seen.beat_at, now - seen.step_at
            stacks = f"and was killed; the stacks of its threads are in {seen.pulse.log_path}"
            if silent_s >= (self.hang_timeout_s or math.inf):
                verdicts[life] = f"the worker was hung: no heartbeat for {silent_s:.0f} s, {stacks}"
            elif stalled_s >= stall_limits[life]:
                verdicts[life] = f"the worker was stuck: alive, but no progress for {stalled_s:.0f} s, {stacks}"
        return verdicts

    def _update(self, life: int, pulse: Pulse, stall_limit_s: float, now: float) -> _Seen:
        last = self._seen.get(life)
        if last is None:
            return _Seen(pulse, now, now)
        beat_at = last.beat_at if pulse.beats == last.pulse.beats else now
        step_at = last.step_at if pulse.steps == last.pulse.steps and stall_limit_s < math.inf else now
        return _Seen(pulse, beat_at, step_at)
