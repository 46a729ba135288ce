"""Two counters in shared memory: a worker's beats (it is alive) and steps (it gets on). No lock that a dead one holds.

Must not judge: the supervisor compares the counters with its own clock. Each counter has one writer.
"""

import ctypes
import threading
import time
from collections.abc import MutableSequence
from multiprocessing.context import BaseContext
from typing import cast

BEAT_S = 0.5

Counters = MutableSequence[int]
"""[beats, steps]; an aligned 64-bit word each, so a reader never sees half a number."""

_BEATS, _STEPS = 0, 1


def new_counters(context: BaseContext) -> Counters:
    """Counters of one life, to be passed in the arguments of its process; freed with the last reference."""
    return cast("Counters", context.RawArray(ctypes.c_uint64, 2))


def read(counters: Counters) -> tuple[int, int]:
    """(beats, steps) so far."""
    return counters[_BEATS], counters[_STEPS]


def step(counters: Counters) -> None:
    """Count one step: of the engine, of a load, or a command obeyed. The worker's main thread only."""
    counters[_STEPS] += 1


def start_beating(counters: Counters) -> None:
    """Beat from a thread of its own, which needs the GIL for each beat: so a held GIL is a stopped heart."""
    threading.Thread(target=_beat, args=(counters,), name="heartbeat", daemon=True).start()


def _beat(counters: Counters) -> None:
    while True:
        counters[_BEATS] += 1
        time.sleep(BEAT_S)
