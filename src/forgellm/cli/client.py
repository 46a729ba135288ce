"""The command line's HTTP client of the daemon. Turns its errors into ForgeLLMErrors; prints nothing."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
import httpx2
import msgspec

from forgellm.cli.options import KEY_FILE
from forgellm.config import load_settings
from forgellm.errors import ConfigError, ForgeLLMError, GenerationFailed, Unavailable, from_wire

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # of routes that do not wait for a model
UNLOAD_TIMEOUT_S = 600.0

KEY_REMEDY = " (the command line takes it from FORGELLM_API_KEY or --api-key-file)"


class Client:
    """A daemon at `url`; without one, where the settings of this user would put it.

    It sends the API key that --api-key-file or FORGELLM_API_KEY gives. Raises ConfigError for one that is none.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = (url or default_url()).rstrip("/")
        timeout = _within(ANSWER_TIMEOUT_S)
        key = api_key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, timeout=timeout, trust_env=False, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def answers(self) -> bool:
        """Whether a ForgeLLM daemon is there."""
        try:
            return "version" in self._json(self._http.get("/api/health"))
        except (httpx2.HTTPError, httpx2.InvalidURL, ForgeLLMError):
            return False

    def get(self, path: str, **params: str) -> Any:
        """The JSON of a route. Raises the ForgeLLMError that the daemon answered, or Unavailable if none is there."""
        with self._reachable():
            return self._json(self._http.get(path, params=params))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """As get(). None values are left out."""
        with self._reachable():
            return self._json(self._http.post(path, json=_without_none(body), timeout=_within(UNLOAD_TIMEOUT_S)))

    def delete(self, path: str) -> Any:
        """As get()."""
        with self._reachable():
            return self._json(self._http.delete(path, timeout=_within(UNLOAD_TIMEOUT_S)))

    def generate(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed generation, `complete` last. Raises the error that ended it."""
        with (
            self._reachable(),
            self._http.stream(
                "POST", "/api/model/generate", json={**_without_none(body), "stream": True}, timeout=_within(None)
            ) as response,
        ):
            if response.status_code != 200:
                response.read()
                self._json(response)
            for line in response.iter_lines():
                event = msgspec.json.decode(line)
                if event["type"] == "error":
                    raise from_wire(event["code"], event["error"])
                yield event
                if event["type"] == "complete":
                    return
        raise GenerationFailed("the daemon closed the connection before the answer was complete")

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """The server-sent events of a route, as (name, value), until the daemon ends them or the caller stops."""
        name = "message"
        with self._reachable(), self._http.stream("GET", path) as response:
            if response.status_code != 200:
                response.read()
                self._json(response)
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, msgspec.json.decode(value)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            raise Unavailable(f"no daemon at {self.url}; start one with `forgellm serve`") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unavailable(f"{self.url}: {error or type(error).__name__}") from error

    def _json(self, response: httpx2.Response) -> Any:
        try:
            body = msgspec.json.decode(response.content)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{self.url} is not a ForgeLLM daemon (status {response.status_code})") from error
        if response.status_code >= 400:
            known = body if isinstance(body, dict) else {}
            remedy = KEY_REMEDY if response.status_code == 401 else ""
            raise from_wire(known.get("code", ""), known.get("error", f"status {response.status_code}") + remedy)
        return body


def _within(answer_s: float | None) -> httpx2.Timeout:
    """A machine that is not there is told at once, however long an answer may take (None: the pool has its limits)."""
    return httpx2.Timeout(answer_s, connect=CONNECT_TIMEOUT_S)


def default_url() -> str:
    """Where a daemon with this user's environment listens."""
    settings = load_settings()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def api_key() -> str | None:
    """The key from --api-key-file or FORGELLM_API_KEY; None without either. Never from argv, which `ps` shows."""
    ctx = click.get_current_context(silent=True)
    path: str | None = ctx.meta.get(KEY_FILE) if ctx is not None else None
    if path is None:
        where, text = "FORGELLM_API_KEY", os.environ.get("FORGELLM_API_KEY", "").strip()
    else:
        try:
            where, text = path, Path(path).expanduser().read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key in {path}: {error}") from error
    if not text.isascii() or not text.isprintable() or " " in text or (path is not None and not text):
        raise ConfigError(f"{where} must hold one API key, and nothing else")
    return text or None


def _without_none(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
