"""Who is to blame for a worker's death, and who may be run again. Pure arithmetic over the requests that it left.

A request whose worker died goes on where it was, in another life: its prompt and its delivered tokens are given to the
engine again. A request that brings its worker down each time must not take the pool with it, nor its neighbours.

The rule: all that ran at a crash are suspects. Suspects are run again one at a time per worker, each until its first
new token clears it; so the next crash has one suspect, and only that one is charged. Two crashes quarantine a request.
A SIGKILL or SIGTERM came from outside more often than not, and counts less: only the third in a row makes suspects, for
running one after the other makes clients wait (measured: 20 streams of the demo model, a pause of 26 s instead of 7).
"""

from collections.abc import Iterable

from forgellm.supervisor.slots import SUSPICION, Asked

CRASH = SUSPICION
KILL = 2
QUARANTINE = 10
ARRIVAL_S = 0.5


def charge(left: Iterable[Asked], now: float, *, is_from_outside: bool) -> None:
    """Blame the suspects among the requests that a dead worker left; all of them if there was none."""
    left = list(left)
    weight = KILL if is_from_outside else CRASH
    suspects = [asked for asked in left if asked.is_suspect]
    for asked in suspects or [asked for asked in left if asked.blame] or left:
        if not (is_from_outside and now - asked.moved_at < ARRIVAL_S):
            asked.blame += weight


def is_quarantined(asked: Asked) -> bool:
    """Whether this request has brought down enough workers."""
    return asked.blame >= QUARANTINE
