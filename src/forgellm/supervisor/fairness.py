"""Whose turn it is for memory, and how long models in use may keep a waiting one out. Pure; must not change anything.

Models wait in one line, first come first served. While the first of it waits, those in memory go on being served,
their new requests too: A B A B becomes A A B B, with two loads instead of four. It gets its turn as soon as enough of
them are idle, or at the latest `max_hold_off_s` after it began to wait and they were ready, whichever is later: a load
is never broken off before it has served anybody, or two busy models would only ever load. At its turn those who have
served for longest go: they take no new requests, running ones have drain_timeout_s to finish, and what still runs then
goes on later, after the tokens that were delivered, with what waits for the same model at the end of the line. So a
model with n others before it waits at most n + 1 times (max_hold_off_s + drain_timeout_s + the time to unload and
load). Pinned models never go.

That requests for a loaded model are served together is llama-swap's practice (its pull request 784: ABCABC as AABBCC);
a bound on how long a waiting one may be passed over is what its issue 612 asks for.
"""

import math
from collections.abc import Iterable

from forgellm.supervisor.slots import Model


def line(models: Iterable[Model]) -> list[Model]:
    """The models that wait for memory, the longest waiting first."""
    return sorted((model for model in models if model.waiting()), key=waits_since)


def waits_since(model: Model) -> float:
    """When the first of its workers began to wait."""
    return min(slot.since for slot in model.waiting())


def turn_at(model: Model, in_its_way: Iterable[Model], max_hold_off_s: float) -> float:
    """When the first model of the line gets the memory of those in its way although they are in use; infinite while one
    of them still loads, or without a bound (0)."""
    ready = [math.inf if other.ready_at is None else other.ready_at for other in in_its_way]
    return max(waits_since(model), *ready) + (max_hold_off_s or math.inf)
