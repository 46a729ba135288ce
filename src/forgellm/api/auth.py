"""Who calls, and what that key may do: the only place that asks. Knows no bodies and decides nothing about models.

Without a keys file everybody on this machine may do everything. Once there is one, what is not allowed here is denied.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from flask import Flask, Response, g, request

from forgellm import keys
from forgellm.api.errors import ForbiddenModel, ForbiddenScope, KeyInUrl, Unauthorized
from forgellm.api.meter import Meter
from forgellm.config import Settings
from forgellm.errors import ConfigError, Unavailable
from forgellm.keys import Key, Ring, Scope
from forgellm.messages import LoadPolicy

log = logging.getLogger(__name__)

_EVERYBODY: frozenset[Scope] = frozenset()
_INFER: frozenset[Scope] = frozenset({"infer"})
_MANAGE: frozenset[Scope] = frozenset({"manage"})
_EITHER: frozenset[Scope] = frozenset({"infer", "manage"})
_METRICS: frozenset[Scope] = frozenset({"metrics"})
_ANY: frozenset[Scope] = frozenset(keys.SCOPES)

SCOPES: dict[str, frozenset[Scope]] = {
    "/": _EVERYBODY,
    "/healthz": _EVERYBODY,
    "/api/health": _EVERYBODY,
    "/readyz": _ANY,  # its reasons name models
    "/openapi.json": _ANY,
    "/metrics": _METRICS,
    "/api/events": _EITHER,
    "/v1/models": _EITHER,
    "/v1/models/<path:model>": _EITHER,
    "/v1/chat/completions": _INFER,
    "/v1/completions": _INFER,
    "/v1/responses": _INFER,
    "/v1/embeddings": _INFER,
    "/v1/messages": _INFER,
    "/v1/messages/count_tokens": _INFER,
    "/api/chat": _INFER,
    "/api/generate": _INFER,
    "/api/embed": _INFER,
    "/api/embeddings": _INFER,
    "/api/tags": _EITHER,
    "/api/ps": _EITHER,
    "/api/show": _EITHER,
    "/api/version": _ANY,
    "/api/pull": _MANAGE,
    "/api/delete": _MANAGE,
    "/api/model/generate": _INFER,
    "/api/model/status": _EITHER,
    "/api/model/info": _EITHER,
    "/api/models": _EITHER,
    "/api/base_models": _EITHER,
    "/api/cpt_models": _EITHER,
    "/api/ift_models": _EITHER,
    "/api/checkpoints": _EITHER,
    "/api/model/load": _MANAGE,
    "/api/model/plan": _MANAGE,
    "/api/model/unload": _MANAGE,
    "/api/models/pull": _MANAGE,
    "/api/models/<path:model>": _MANAGE,
    "/api/jobs": _MANAGE,
    "/api/jobs/<job_id>": _MANAGE,
    "/api/admin/drain": _MANAGE,
    "/api/admin/reload": _MANAGE,
}
"""Which scopes open a route; any of them is enough, and _EVERYBODY needs no key. A route that is missing here is closed
to every key: tests/api/test_auth.py walks the routes of the app, so that none is forgotten."""

INFERENCE = frozenset(path for path, scopes in SCOPES.items() if scopes == _INFER)
"""The routes that ask a model."""

_KEY_PARAMETERS = frozenset(
    {"key", "api_key", "api-key", "apikey", "x-api-key", "access_token", "token", "auth", "authorization"}
)
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent this request. `key` None: no key is needed here."""

    key: Key | None = None

    @property
    def id(self) -> str:
        """The id of the key, not a secret; "" where none is needed."""
        return self.key.id if self.key else ""

    @property
    def load_policy(self) -> LoadPolicy | None:
        """Whether what it asks may have a model loaded; None: as the settings say."""
        return self.key.load_policy if self.key else None

    def may_use(self, model: str) -> bool:
        """Whether the key's list of models, if it has one, names `model`."""
        return self.key is None or self.key.models is None or model in self.key.models

    def allow(self, model: str | None) -> None:
        """Raises ForbiddenModel if the caller may not use `model`; None is whichever the server would choose."""
        if self.key is None or self.key.models is None or (model is not None and model in self.key.models):
            return
        models = ", ".join(self.key.models)
        what = "must name the model" if model is None else f"may not use {model}"
        raise ForbiddenModel(f"the API key {self.key.name} {what}; its models are: {models}", field="model")

    def allow_keep_alive(self, seconds: float | None) -> None:
        """Raises ForbiddenScope if the caller says for how long a model stays, and may only use what is loaded."""
        if seconds is not None and self.key is not None and self.key.load_policy == "preloaded":
            raise ForbiddenScope(
                f"the API key {self.key.name} may only use what is loaded, and not say how long it stays: leave "
                "`keep_alive` or `keep_alive_s` out"
            )


def caller() -> Caller:
    """Who sent the request that this thread answers. There is none before register()'s check has run."""
    found = g.caller
    assert isinstance(found, Caller)  # noqa: S101 - tells mypy what the check stored
    return found


def require_keys(settings: Settings) -> None:
    """Raises ConfigError unless there is a key; for an address that other machines reach."""
    ring = keys.read(settings.keys_path)
    if ring is None or not ring.keys:
        message = (
            f"host {settings.host} can be reached from other machines, and {settings.keys_path} has no API keys; run "
            "`forgellm keys create` first, or listen on 127.0.0.1"
        )
        raise ConfigError(message, field="host")


def register(app: Flask, settings: Settings) -> None:
    """Check every request of `app`. Raises ConfigError for a keys file that cannot be used: never open by mistake."""
    guard = _Guard(settings.keys_path)
    app.before_request(guard.check)
    app.after_request(guard.answered)
    app.teardown_request(guard.left)


@dataclass(slots=True)
class _Held:
    """A request's place in its key's meter: given back once, when its answer has been sent or given up."""

    meter: Meter
    is_answered: bool = False  # a response will give it back
    is_over: bool = False

    def leave(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.meter.leave()


@dataclass(slots=True)
class _Guard:
    """The checks of one app, and the keys that they go by."""

    path: Path
    _stamp: tuple[int, ...] | None = None
    _ring: Ring | None = None
    _is_broken: bool = False
    _meters: dict[str, Meter] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._stamp = _stamp(self.path)
        self._ring = keys.read(self.path)

    def check(self) -> None:
        """Let the request through, or raise what is wrong with it."""
        _refuse_key_in_url()
        ring = self._current()
        if ring is None:
            g.caller = Caller()
            return
        rule = request.url_rule.rule if request.url_rule is not None else None
        wanted = SCOPES.get(rule) if rule is not None else None
        if wanted == _EVERYBODY or _is_preflight():
            return
        key = ring.find(_sent_key())
        if key is None:
            raise Unauthorized("no such API key; ask the owner of this server for one")
        if rule is not None:  # an unknown path is told as such, to those who have a key
            _check_scope(key, wanted)
        if request.method not in _READS:
            meter = self._meter(key)
            meter.enter(key, time.monotonic())
            g.held = _Held(meter)
        g.caller = Caller(key)

    def answered(self, response: Response) -> Response:
        """The key's place is given back when the last byte is out."""
        if response.status_code == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        held = g.get("held")
        if held is not None:  # kept: if what runs after this fails, another response comes in place of this one
            held.is_answered = True
            response.call_on_close(held.leave)
        return response

    def left(self, error: BaseException | None) -> None:
        """If no response came of it, nobody will close one."""
        held = g.get("held")
        if held is not None and not held.is_answered:
            held.leave()

    def _current(self) -> Ring | None:
        """The keys as the file has them now, None if there never was one.

        A file that is gone or broken lets nobody in: an app that asked for keys once asks for them until it ends.
        """
        stamp = _stamp(self.path)
        if stamp != self._stamp:
            with self._lock:
                if stamp != self._stamp:
                    self._reload(stamp)
        if self._is_broken:
            raise Unavailable("this server cannot read its API keys; its log says why", retry_after_s=5)
        return self._ring

    def _reload(self, stamp: tuple[int, ...] | None) -> None:
        try:
            found = keys.read(self.path)
        except ConfigError as error:
            log.error("nobody is let in: %s", error.message)
            self._is_broken = True
        else:
            if found is None and self._ring is not None:
                log.error("nobody is let in: the keys file %s is gone", self.path)
            self._ring = found or (None if self._ring is None and not self._is_broken else Ring(()))
            self._is_broken = False
            known = {key.id for key in self._ring.keys} if self._ring else set()
            self._meters = {key_id: meter for key_id, meter in self._meters.items() if key_id in known}
        self._stamp = stamp  # last: whoever sees it sees what it stands for

    def _meter(self, key: Key) -> Meter:
        with self._lock:
            return self._meters.setdefault(key.id, Meter(time.monotonic()))


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does. A look at it costs microseconds, so every request takes one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:  # a folder that may not be read: read() then says so
        return (error.errno or 0,)
    return (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)


def _sent_key() -> str:
    """The key in the headers. Raises Unauthorized if there is none, or two that differ."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    sent = {request.headers.get("X-Api-Key", "").strip(), credentials.strip() if scheme.lower() == "bearer" else ""}
    sent.discard("")
    if not sent:
        raise Unauthorized("this server wants an API key: send `Authorization: Bearer KEY`, or `x-api-key: KEY`")
    if len(sent) > 1:
        raise Unauthorized("`Authorization` and `x-api-key` hold different keys; send one")
    return sent.pop()


def _check_scope(key: Key, wanted: Iterable[Scope] | None) -> None:
    if wanted is None:
        raise ForbiddenScope("no API key opens this route")
    if not set(wanted) & set(key.scopes):
        needed = " or ".join(sorted(wanted))
        raise ForbiddenScope(f"the API key {key.name} lacks the scope for this: {needed}; create another with --scope")


def _is_preflight() -> bool:
    """Browsers ask without a key whether a page may send one. No view runs."""
    return request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers


def _refuse_key_in_url() -> None:
    """URLs end up in histories, logs and Referer headers. What was sent is not repeated."""
    names = {name.strip().lower() for name in request.args}
    address = f"{unquote(request.path)}?{unquote_plus(request.query_string.decode('latin-1'))}"
    if names & _KEY_PARAMETERS or keys.SHAPE.search(address):
        raise KeyInUrl("a key does not belong in a URL, which others log; send it in a header, and revoke this one")
