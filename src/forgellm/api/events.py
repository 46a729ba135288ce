"""`/api/events`: what happens to models and workers, as server-sent events. Follows; decides and changes nothing."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, request

from forgellm.api import sse
from forgellm.api.context import context
from forgellm.api.status import model_picture
from forgellm.api.wsgi_host import client_gone
from forgellm.supervisor.effects import Announce, Died, Evicted
from forgellm.supervisor.status import PoolStatus
from forgellm.supervisor.watch import Change, Watch, model_of

blueprint = Blueprint("events", __name__)

POLL_S = 0.5  # how soon a follower that went away, or a server that stops, is noticed
QUIET_S = 15.0  # then a ping, so that proxies keep the connection


@blueprint.get("/api/events")
def events() -> Response:
    """First how everything is, then each change as it happens."""
    ctx = context()
    ctx.gate.enter()
    try:
        watch = ctx.pool.watch()
    except BaseException:  # whatever it was, it goes on up; only the place in the gate is given back
        ctx.gate.leave()
        raise
    gone = client_gone(request.environ)
    frames = _frames(watch, ctx.pool.status(), lambda: gone() or ctx.gate.is_draining)
    response = Response(frames, mimetype=sse.MIMETYPE)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(watch.close)
    response.call_on_close(ctx.gate.leave)
    return response


def _frames(watch: Watch, status: PoolStatus, is_over: Callable[[], bool]) -> Iterator[bytes]:
    yield sse.frame({"models": [model_picture(model, status.clock) for model in status.models]}, "snapshot")
    last_word = time.monotonic()
    while not is_over():
        changes = watch.take(POLL_S)
        if changes:
            yield b"".join(_frame(change) for change in changes)
        elif watch.has_ended:
            break
        elif time.monotonic() - last_word >= QUIET_S:
            yield sse.PING
        else:
            continue
        last_word = time.monotonic()
    why = "you read too slowly, and would have missed changes; ask again" if watch.is_lost else "the server is stopping"
    yield sse.frame({"reason": why}, "end")


def _frame(change: Change) -> bytes:
    """One change. `time` is when it was written: within milliseconds of when it happened."""
    body: dict[str, Any] = {"time": round(time.time(), 3)}
    if isinstance(change, Evicted):
        return sse.frame(body | {"model": change.model, "cause": change.cause, "reason": change.reason}, "eviction")
    body |= {"model": model_of(change), "worker": change.worker, "life": change.life}
    if isinstance(change, Announce):
        return sse.frame(body | {"from": change.old, "to": change.new, "reason": change.reason}, "state")
    if isinstance(change, Died):
        return sse.frame(body | {"cause": change.cause, "reason": change.reason}, "death")
    return sse.frame(body | {"progress": change.progress, "stage": change.stage}, "progress")
