"""Turns errors into responses: the only place that knows HTTP status codes. Decides nothing else."""

import errno
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException

from forgellm.errors import RETRY_AFTER_S, ForgeLLMError

log = logging.getLogger(__name__)

STATUS_BY_CODE: dict[str, int] = {
    "invalid_request": 400,
    "empty": 400,
    "context_length_exceeded": 400,
    "template_error": 400,
    "unsupported_parameter": 400,
    "model_not_loaded": 400,
    "payload_too_large": 413,
    "key_in_url": 400,
    "unauthorized": 401,
    "forbidden_scope": 403,
    "forbidden_model": 403,
    "forbidden_host": 403,
    "forbidden_origin": 403,
    "hub_token_required": 403,
    "not_found": 404,
    "model_not_found": 404,
    "request_not_found": 404,
    "job_not_found": 404,
    "repository_not_found": 404,
    "method_not_allowed": 405,
    "model_in_use": 409,
    "model_error": 422,
    "model_invalid": 422,
    "model_changed": 422,
    "unsupported_format": 422,
    "untrusted_code": 422,
    "request_crashes_worker": 422,
    "queue_full": 429,
    "rate_limited": 429,
    "too_many_at_once": 429,
    "client_gone": 499,  # nobody reads it; nginx's number, for the log
    "internal_error": 500,
    "generation_failed": 500,
    "startup_error": 500,
    "channel_unsafe": 500,
    "config_error": 500,
    "address_in_use": 500,
    "download_damaged": 502,
    "request_timeout": 504,
    "disk_full": 507,
    "unavailable": 503,
    "pool_full": 503,
    "queue_timeout": 503,
    "model_loading": 503,
    "model_unloading": 503,
    "draining": 503,
    "model_failed": 503,
    "insufficient_memory": 503,
    "gpu_oom": 503,
    "worker_died": 503,
    "engine_unavailable": 503,
    "hub_unavailable": 503,
    "shutting_down": 503,
    "supervisor_unavailable": 503,
    "version_skew": 503,
}

_WORDS_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
_RETRY_STATUSES = frozenset({429, 503})


class ForbiddenHost(ForgeLLMError):
    """The Host header names a machine that this server does not answer for (DNS rebinding)."""

    code = "forbidden_host"


class ForbiddenOrigin(ForgeLLMError):
    """A web page of an origin that is not in cors_origins tried to change something."""

    code = "forbidden_origin"


class KeyInUrl(ForgeLLMError):
    """An API key, or a parameter made for one, is in the URL."""

    code = "key_in_url"


class Unauthorized(ForgeLLMError):
    """No API key, or one that is not known (any more)."""

    code = "unauthorized"


class ForbiddenScope(ForgeLLMError):
    """The API key is not for this route, or not for a parameter of it."""

    code = "forbidden_scope"


class ForbiddenModel(ForgeLLMError):
    """The API key has a list of models, and this one is not on it."""

    code = "forbidden_model"


class RateLimited(ForgeLLMError):
    """More requests in a minute than the API key may send."""

    code = "rate_limited"


class TooManyAtOnce(ForgeLLMError):
    """More requests at the same time than the API key may have answered."""

    code = "too_many_at_once"


class ClientGone(ForgeLLMError):
    """The client closed its connection before the answer was ready."""

    code = "client_gone"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client may see it; a dialect draws it as JSON in its own envelope."""

    status: int
    code: str
    message: str
    field: str | None = None


Envelope = Callable[[Problem], dict[str, Any]]

_ENVELOPES = "forgellm.envelopes"


def json_response(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, mimetype="application/json")


def error_body(problem: Problem) -> dict[str, Any]:
    """The envelope of `/api/*`, and of every path that no dialect claims."""
    body: dict[str, Any] = {"success": False, "error": problem.message, "code": problem.code}
    if problem.field is not None:
        body["field"] = problem.field
    return body


def problem_of(error: Exception) -> Problem:
    """What a client may see of `error`; one that nobody raised on purpose is logged and says nothing."""
    if isinstance(error, ForgeLLMError):
        return Problem(STATUS_BY_CODE.get(error.code, 500), error.code, error.message, error.field)
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        log.warning("the system refuses: %s", error)
        return Problem(503, "unavailable", f"this machine or process has none left: {error.strerror}; try again later")
    log.error("internal error", exc_info=error)
    return Problem(500, "internal_error", "internal error; the server's log says more")


def drawn(app: Flask, path: str, problem: Problem) -> dict[str, Any]:
    """The body of an error under `path`: the envelope of the dialect with the longest path above it."""
    envelopes: Mapping[str, Envelope] = app.extensions.get(_ENVELOPES, {})
    above = [each for each in envelopes if path == each or path.startswith(each + "/")]
    return envelopes[max(above, key=len)](problem) if above else error_body(problem)


def register(app: Flask, envelopes: Mapping[str, Envelope] | None = None) -> None:
    """Make every error of `app` a JSON answer, unknown paths and wrong methods included.

    `envelopes`: how errors look under a path, where they do not look as those of `/api/*` do."""
    app.extensions[_ENVELOPES] = envelopes or {}
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _other)


def _respond(problem: Problem) -> Response:
    return json_response(drawn(current_app, request.path, problem), problem.status)


def _other(error: Exception) -> Response:
    response = _respond(problem_of(error))
    if response.status_code in _RETRY_STATUSES:
        given = error.retry_after_s if isinstance(error, ForgeLLMError) else None
        seconds = RETRY_AFTER_S if given is None else given
        response.headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return response


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    if status < 400:  # a redirect, raised by the router
        return Response(status=status, headers=dict(error.get_headers()))
    fallback = "internal_error" if status >= 500 else "invalid_request"
    response = _respond(Problem(status, _WORDS_BY_STATUS.get(status, fallback), error.description or error.name))
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response
