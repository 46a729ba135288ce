"""How every test waits for something to happen: not a moment longer than it takes, and never for ever."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

DEADLINE_S = 40.0


def wait_until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S, pause_s: float = 0.01) -> float:
    """Seconds until the condition held; fails after the timeout."""
    begun, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - begun < timeout_s, "it did not happen in time"
        pause.wait(pause_s)
    return time.monotonic() - begun


class Longest:
    """The longest of many waits, in seconds, each without what the host of this virtual machine took from it meanwhile:
    who waits for the supervisor can be no faster than the machine. What programs take from each other does count."""

    def __init__(self) -> None:
        self.count = 0
        self.longest_s = 0.0
        self.start()

    def start(self) -> None:
        self._began, self._taken = time.monotonic(), _taken_s()

    def end(self) -> None:
        """The wait that start() began is over; the next one begins."""
        began, taken = self._began, self._taken
        self.start()
        lost_s = max(after - before for after, before in zip(self._taken, taken, strict=True))
        self.longest_s = max(self.longest_s, self._began - began - lost_s)
        self.count += 1


def _taken_s() -> list[float]:
    """What the host took from each processor so far ("steal" in Linux's /proc/stat); other systems do not tell."""
    return [getattr(each, "steal", 0.0) for each in psutil.cpu_times(percpu=True)]
