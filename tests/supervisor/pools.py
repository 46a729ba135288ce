"""What tests of real pools share."""

import threading
import time
from collections.abc import Callable

from forgellm import Supervisor

StartPool = Callable[..., Supervisor]
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> float:
    """Seconds until the condition held; fails after the timeout."""
    started = time.monotonic()
    pause = threading.Event()
    while not condition():
        assert time.monotonic() - started < timeout_s, "it did not happen in time"
        pause.wait(0.002)
    return time.monotonic() - started
