"""What must hold whatever happened (tests/chaos): one helper around a pool, one around a fault of a daemon.

By their numbers there: I1 every request ends, once; I2 health answers; I4 nothing is held that was not before; I6 only
legal moves; I10 errors are JSON with a code. What is a matter of the answers themselves (I3 no gaps in other streams,
I8 whole texts) the tests compare.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psutil

from daemons import Daemon
from forgellm import Supervisor
from forgellm.messages import Prefill
from forgellm.states import LEGAL_MOVES
from forgellm.supervisor.effects import Announce

BACK_S = 5.0
HEALTH_EVERY_S = 0.05


@contextmanager
def sound_pool(pool: Supervisor) -> Iterator[Supervisor]:
    """Run a pool for a test: each request and each ticket got one end (I1), each move of a worker is legal (I6)."""
    ends: Counter[str] = Counter()
    deliver = pool._deliveries.deliver

    def counted(to: str, news: Any) -> None:
        ends[to] += news[4] is not None if isinstance(news, tuple) else not isinstance(news, Prefill)
        deliver(to, news)

    pool._deliveries.deliver = counted  # type: ignore[method-assign]
    with pool:
        watch = pool.watch()
        yield pool
        moves = [each for each in watch.take(0.0) if isinstance(each, Announce)]
        watch.close()
    assert pool._deliveries._readers == {}
    assert {to: count for to, count in ends.items() if to and count > 1} == {}
    states = {move.worker: move.old for move in reversed(moves)}
    for move in moves:
        assert move.new in LEGAL_MOVES[move.old], move
        assert states[move.worker] is move.old, move
        states[move.worker] = move.new


@contextmanager
def sound_daemon(served: Daemon, health_s: float = 1.0) -> Iterator[None]:
    """Around a fault of a daemon: its health answers within `health_s` all the time (I2; a quarter of a second on a
    machine that is not busy with tests), and within BACK_S after it the daemon holds what it held (I4), its models are
    ready and idle (I1), its errors are JSON with a code (I10), its log has no traceback."""
    process = psutil.Process(served.process.pid)
    served.http.get("/healthz")
    is_over, times = threading.Event(), []
    with httpx2.Client(base_url=served.url, timeout=20, trust_env=False) as prober:

        def probe() -> None:
            while not is_over.wait(HEALTH_EVERY_S):
                began = time.monotonic()
                assert prober.get("/healthz").status_code == 200
                times.append(time.monotonic() - began)

        prober.get("/healthz")
        before = _held(process)
        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(20.0)
        assert times
        assert max(times) < health_s
        _wait_as_before(served, process, before)
    missing = served.http.get("/no/such/path")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "Traceback" not in (served.folder / "daemon.log").read_text()


def _wait_as_before(served: Daemon, process: psutil.Process, before: dict[str, int]) -> None:
    deadline = time.monotonic() + BACK_S
    pause = threading.Event()
    while True:
        now = _held(process)
        more = {name: (before[name], now[name]) for name in now if now[name] > before[name]}
        models = served.http.get("/api/model/status").json()["models"]
        if not more and all((m["state"], m["in_flight"], m["queue_depth"]) == ("ready", 0, 0) for m in models):
            return
        assert time.monotonic() < deadline, (more, models)
        pause.wait(0.05)


def _held(daemon: psutil.Process) -> dict[str, int]:
    alive = [each for each in daemon.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return {"descriptors": daemon.num_fds(), "threads": daemon.num_threads(), "processes": len(alive)}
