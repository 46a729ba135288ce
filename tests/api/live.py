"""A real server over a real Supervisor on echo models, for the tests of the API: over HTTP, as a client sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.api.app import create_app
from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from invariants import sound_pool
from waiting import DEADLINE_S, wait_until

__all__ = ["DEADLINE_S", "GENERATE", "Live", "live", "wait_until"]

GENERATE = "/api/model/generate"


@dataclass(frozen=True)
class Live:
    pool: Supervisor
    server: HttpServer
    http: httpx2.Client
    gate: Gate

    def load(self, model: str, **body: Any) -> dict[str, Any]:
        """Load a model and wait until it is ready."""
        response = self.http.post("/api/model/load", json={"model": model, "wait": True, **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def status(self, model: str | None = None) -> dict[str, Any]:
        response = self.http.get("/api/model/status", params={"model": model} if model else {})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def generate(self, prompt: str = "hello there", **body: Any) -> httpx2.Response:
        return self.http.post(GENERATE, json={"prompt": prompt, **body})

    def events(self, prompt: str = "hello there", **body: Any) -> list[dict[str, Any]]:
        """The lines of a stream."""
        response = self.generate(prompt, stream=True, **body)
        assert response.status_code == 200, response.text
        return [msgspec.json.decode(line) for line in response.content.splitlines()]


@contextmanager
def live(folder: Path, models: dict[str, dict[str, Any]], **settings: Any) -> Iterator[Live]:
    """Serve echo models, each with its knobs, on a free port."""
    configs = {name: ModelConfig(source="echo", options=options) for name, options in models.items()}
    wanted = Settings(port=0, models=configs, cache_dir=str(folder), **{"spare": False, "max_streams": 8, **settings})
    gate = Gate(wanted.max_streams)
    with sound_pool(Supervisor(wanted)) as pool:
        server = HttpServer(create_app(pool, wanted, gate), wanted, gate)
        server.start()
        try:
            with httpx2.Client(base_url=server.url, timeout=DEADLINE_S, trust_env=False) as http:
                yield Live(pool, server, http, gate)
        finally:
            server.stop()
