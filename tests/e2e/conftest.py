"""One daemon for all tests of clients: starting it and loading the demo model is most of what they would cost."""

from collections.abc import Iterator

import pytest

import tiny_embedder
from daemons import Daemon, daemon

MODELS = """
[models.e]
source = "echo"
preload = true

[models.slow]
source = "echo"
preload = true
options = {{ tokens_per_s = 20.0 }}

[models.embedder]
source = "{embedder}"
"""


@pytest.fixture(scope="session")
def demo_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with the demo model (`smollm2`) and two echo models (`e`; `slow`: 20 tokens/s) ready, and an embedding
    model (`embedder`) that is loaded by the first request for it. Change nothing in it that another test could see.
    OpenAI's base URL is its `url` + "/v1"."""
    folder = tmp_path_factory.mktemp("clients")
    embedder = tiny_embedder.build(folder / "embedder")
    with daemon(folder, MODELS.format(embedder=embedder), share_cache=True) as served:
        for name in ("smollm2", "e", "slow"):
            answer = served.http.post("/api/model/load", json={"model": name, "wait": True}, timeout=110)
            assert answer.status_code == 200, f"{name}: {answer.status_code} {answer.text}"
        yield served
