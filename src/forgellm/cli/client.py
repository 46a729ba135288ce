"""The command line's HTTP client of the daemon. Turns its errors into ForgeLLMErrors; prints nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec

from forgellm.config import load_settings
from forgellm.errors import ForgeLLMError, GenerationFailed, Unavailable, from_wire

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0  # of routes that do not wait for a model
UNLOAD_TIMEOUT_S = 600.0


class Client:
    """A daemon at `url`; without one, where the settings of this user would put it."""

    def __init__(self, url: str | None = None) -> None:
        self.url = (url or default_url()).rstrip("/")
        timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._http = httpx2.Client(base_url=self.url, timeout=timeout, trust_env=False)

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
            return self._json(self._http.post(path, json=_without_none(body), timeout=UNLOAD_TIMEOUT_S))

    def generate(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed generation, `complete` last. Raises the error that ended it."""
        with (
            self._reachable(),
            self._http.stream(
                "POST", "/api/model/generate", json={**_without_none(body), "stream": True}, timeout=None
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
            raise from_wire(known.get("code", ""), known.get("error", f"status {response.status_code}"))
        return body


def default_url() -> str:
    """Where a daemon with this user's environment listens."""
    settings = load_settings()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _without_none(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
