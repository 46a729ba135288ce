"""Who is to blame for a worker's death, and who may be run again. Pure arithmetic over the requests that it left.

A request whose worker died goes on where it was, in another life: its prompt and its delivered tokens are given to the
engine again. A request that brings its worker down each time must not take the pool with it, nor its neighbours.

The rule: all that ran at a crash are suspects. Suspects are run again one at a time per worker, each until its first
new token clears it; so the next crash has one suspect, and only that one is charged. Two crashes quarantine a request.

A kill from outside blames nobody, however often it comes, or the answers that it interrupts would be lost at last: with
a kill for each of 20 streams, one of them never had a token in between (tests/chaos/test_replay.py). A crash is what
shows that it came from inside: a signal of its own, an exit, a hang, a limit, the kernel's count of kills for memory.
"""

from collections.abc import Iterable

from forgellm.supervisor.slots import Asked

QUARANTINE = 2


def charge(left: Iterable[Asked]) -> None:
    """Blame the suspects among the requests that a crashed worker left; all of them if there was none."""
    left = list(left)
    for asked in [asked for asked in left if asked.is_suspect] or left:
        asked.crashes += 1


def is_quarantined(asked: Asked) -> bool:
    """Whether this request has crashed enough workers."""
    return asked.crashes >= QUARANTINE
