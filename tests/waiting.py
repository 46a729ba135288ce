"""How every test waits for something to happen: not a moment longer than it takes, and never for ever."""

import threading
import time
from collections.abc import Callable
from typing import Any

DEADLINE_S = 40.0


def wait_until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S, pause_s: float = 0.01) -> float:
    """Seconds until the condition held; fails after the timeout."""
    begun, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - begun < timeout_s, "it did not happen in time"
        pause.wait(pause_s)
    return time.monotonic() - begun
