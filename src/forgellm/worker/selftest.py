"""The worker's part of the channel's start-up self-test: say one whole thing, then die in the middle of the next.

Imports next to nothing: it runs at every start of a supervisor.
"""

import os
import signal
from multiprocessing.queues import Queue, SimpleQueue

from forgellm.messages import Bye, Command, Event

TORN_BYTES = 1 << 20


def die_mid_message(down: "Queue[Command]", up: "SimpleQueue[Event]") -> None:
    """The target of a process: an event, the head of another of TORN_BYTES, SIGKILL."""
    down._writer.close()  # type: ignore[attr-defined]  # private
    up.put(Bye())
    os.write(up._writer.fileno(), TORN_BYTES.to_bytes(4, "big") + b"x" * 1000)  # type: ignore[attr-defined]  # private
    os.kill(os.getpid(), signal.SIGKILL)
