"""The name of each HTTP request, and its line in the access log. Never logs a query, a header, a body or an answer."""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flask import Flask, Response, g, request

from forgellm import keys
from forgellm.api.auth import Caller
from forgellm.messages import Request
from forgellm.supervisor.generation import Generation

log = logging.getLogger("forgellm.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._:/@+=-]{1,128}")
_QUIET = frozenset({"/", "/healthz", "/readyz", "/metrics", "/api/health", "/api/model/status"})
"""What machines ask every few seconds: told at the level `debug`, unless it fails."""


def register(app: Flask) -> None:
    """Before anything else is registered: what is refused later has a name and a line, too."""
    app.before_request(_begin)
    app.after_request(_answered)


def adopt(requests: Sequence[Request]) -> list[Request]:
    """The requests under the client's own X-Request-Id, if it sent a sane one: their ids end with it, and still differ
    from all others. The first one's id names the HTTP request if the client did not."""
    given = g.given_id
    named = [replace(each, request_id=f"{each.request_id}:{given}") for each in requests] if given else list(requests)
    g.request_id = named[0].request_id
    return named


def follow(generations: Sequence[Generation]) -> None:
    """Their tokens belong into the line of the HTTP request that is being served."""
    g.generations = generations


def _begin() -> None:
    g.began_at = time.monotonic()
    given = request.headers.get("X-Request-Id", "")
    g.given_id = given if _SANE_ID.fullmatch(given) else None


def _answered(response: Response) -> Response:
    own_id = g.get("request_id")
    name = g.given_id or own_id or f"req-{uuid.uuid4().hex}"
    response.headers["X-Request-Id"] = name
    is_quiet = request.path in _QUIET and response.status_code < 400
    level = logging.DEBUG if is_quiet else logging.INFO
    if log.isEnabledFor(level):
        data: dict[str, Any] = {
            "request_id": own_id or name,
            "client": request.remote_addr,
            "method": request.method,
            "path": request.url_rule.rule if request.url_rule else keys.SHAPE.sub("[key]", request.path)[:200],
            "status": response.status_code,
        }
        who = g.get("caller")
        if isinstance(who, Caller) and who.id:
            data["key"] = who.id
        generations = g.get("generations", ())
        response.call_on_close(partial(_log, level, data, generations, g.began_at))
    return response


def _log(level: int, data: dict[str, Any], generations: Sequence[Generation], began_at: float) -> None:
    """The last byte is out: now the line knows how long it took, and what it cost."""
    data["duration_s"] = round(time.monotonic() - began_at, 4)
    words = f"{data['client']} {data['method']} {data['path']} {data['status']} {data['duration_s']:.3f} s"
    if generations:
        usages = [each.usage for each in generations if each.usage is not None]
        data["model"] = generations[0].model
        data["finish_reason"] = generations[0].finish_reason or "error"
        data["prompt_tokens"] = sum(usage.prompt_tokens for usage in usages)
        data["completion_tokens"] = sum(usage.completion_tokens for usage in usages)
        words += f" {data['model']} {data['prompt_tokens']}+{data['completion_tokens']} tokens {data['finish_reason']}"
    log.log(level, "%s %s", words, data["request_id"], extra={"data": data})
