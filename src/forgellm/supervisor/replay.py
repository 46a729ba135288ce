"""Who is to blame for a worker's death, and who may be run again. Pure arithmetic over the requests that it left.

A request whose worker died goes on where it was, in another life: its prompt and its delivered tokens are given to the
engine again. A request that brings its worker down each time must not take the pool with it, nor its neighbours.

The rule: all that ran at a death are suspects. Suspects are run again one at a time per worker, each until its first
new token clears it; so the next death has one suspect, and only that one is charged. Two crashes quarantine a request.
A SIGKILL or SIGTERM came from outside more often than not, and counts less.
"""

import signal
from collections.abc import Iterable

from forgellm.supervisor.slots import Asked

CRASH = 5
KILL = 2
QUARANTINE = 10

FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM})
"""Exit codes of workers that somebody else ended, unless the supervisor did."""


def charge(left: Iterable[Asked], *, is_from_outside: bool) -> None:
    """Blame the suspects among the requests that a dead worker left; all of them if there was none."""
    left = list(left)
    weight = KILL if is_from_outside else CRASH
    for asked in [asked for asked in left if asked.is_suspect] or left:
        asked.blame += weight


def is_quarantined(asked: Asked) -> bool:
    """Whether this request has brought down enough workers."""
    return asked.blame >= QUARANTINE
