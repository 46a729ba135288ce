"""The states a worker slot can be in, and the only moves between them.

Data, not behaviour: the pool reads this table, a test iterates it, and nothing here imports more than the stdlib.
"""

from enum import StrEnum


class WorkerState(StrEnum):
    """What one replica of a model is doing now. Each state is explained in docs/lifecycle.md."""

    STOPPED = "stopped"
    WAITING = "waiting"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


_S = WorkerState

LEGAL_MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    _S.STOPPED: frozenset({_S.WAITING, _S.STARTING}),
    _S.WAITING: frozenset({_S.STOPPED, _S.STARTING, _S.FAILED}),
    _S.STARTING: frozenset({_S.LOADING, _S.STOPPING, _S.BACKOFF, _S.FAILED}),
    _S.LOADING: frozenset({_S.READY, _S.STOPPING, _S.BACKOFF, _S.FAILED}),
    _S.READY: frozenset({_S.DRAINING, _S.STOPPING, _S.BACKOFF}),
    _S.DRAINING: frozenset({_S.STOPPING, _S.BACKOFF}),
    _S.STOPPING: frozenset({_S.STOPPED}),
    _S.BACKOFF: frozenset({_S.WAITING, _S.STARTING, _S.STOPPED, _S.FAILED}),
    _S.FAILED: frozenset({_S.WAITING, _S.STARTING, _S.STOPPED}),
}

HAS_PROCESS = frozenset({_S.STARTING, _S.LOADING, _S.READY, _S.DRAINING, _S.STOPPING})
"""States in which a process exists, so that its exit is news."""

WILL_SERVE = frozenset({_S.WAITING, _S.STARTING, _S.LOADING, _S.READY, _S.BACKOFF})
"""States in which a request may wait: the worker serves now, or is expected to without anybody asking."""

IS_LOADING = frozenset({_S.WAITING, _S.STARTING, _S.LOADING, _S.BACKOFF})
"""States that a client sees as "is loading"."""


IS_LOADED = frozenset({_S.READY, _S.DRAINING})
"""States that a client sees as "loaded"."""


class IllegalMove(Exception):
    """A bug in the pool: a move that LEGAL_MOVES does not hold. Never shown to a client."""


def check_move(old: WorkerState, new: WorkerState) -> WorkerState:
    """Return `new`, or raise IllegalMove if `old` may not become it."""
    if new not in LEGAL_MOVES[old]:
        raise IllegalMove(f"{old} -> {new}")
    return new
