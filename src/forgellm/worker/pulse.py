"""Two counters in shared memory: a worker's beats (it is alive) and steps (it gets on). No lock that a dead one holds.

Must not judge: the supervisor compares the counters with its own clock. Each counter has one writer.
"""

import threading
import time
from multiprocessing.heap import Arena

BEAT_S = 0.5
SIZE_BYTES = 4096


class Counters:
    """Of one life: made by the supervisor, passed in the arguments of the process, freed with the last reference.

    An anonymous shared mapping of its own (RawArray's is one for all processes, and is never given back). Each counter
    is an aligned 64-bit word, so a reader never sees half a number."""

    def __init__(self) -> None:
        self._attach(Arena(SIZE_BYTES))

    def beat(self) -> None:
        """By the heart's thread only."""
        self._words[0] += 1

    def step(self) -> None:
        """A step of the engine or of a load, or a command obeyed. By the worker's main thread only."""
        self._words[1] += 1

    def read(self) -> tuple[int, int]:
        """(beats, steps) so far."""
        return self._words[0], self._words[1]

    def start_beating(self) -> None:
        """Beat from a thread of its own, which needs the GIL for each beat: so a held GIL is a stopped heart."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while True:
            self.beat()
            time.sleep(BEAT_S)

    def _attach(self, arena: Arena) -> None:
        self._arena = arena
        self._words = memoryview(arena.buffer).cast("B").cast("Q")

    def __getstate__(self) -> Arena:
        return self._arena  # pickles only while a process is being spawned, as its file descriptor

    def __setstate__(self, arena: Arena) -> None:
        self._attach(arena)
