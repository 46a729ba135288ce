"""What API keys get of a queue, over HTTP."""

import threading
from pathlib import Path

import httpx2
import pytest
from live import GENERATE, live, wait_until

from forgellm import keys

pytestmark = pytest.mark.process


def test_a_key_that_has_its_share_of_a_queue_is_told_so_and_another_key_finds_room(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ann, bob = (
        {"Authorization": f"Bearer {keys.create(path, name=name, scopes=('infer', 'manage'))[1]}"}
        for name in ("ann", "bob")
    )
    answers: dict[str, list[httpx2.Response]] = {"ann": [], "bob": []}
    models = {"e": {"tokens_per_s": 1.0}}
    with live(tmp_path, models, keys_file=str(path), max_batch=1, max_queue=4, max_streams=12) as api:
        api.http.headers.update(ann)
        api.load("e")

        def ask(name: str, key: dict[str, str]) -> None:
            answers[name].append(api.http.post(GENERATE, json={"prompt": "x " * 1000}, headers=key))

        def asks(name: str, key: dict[str, str], depth: int) -> threading.Thread:
            thread = threading.Thread(target=ask, args=(name, key))
            thread.start()
            wait_until(lambda: api.status("e")["queue_depth"] == depth)
            return thread

        threads = [asks("ann", ann, depth) for depth in (0, 1, 2)]
        refused = api.generate()
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
        assert "this API key has 2 requests waiting, its share of the queue for e" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) >= 1
        threads.append(asks("bob", bob, 3))
        assert api.http.post("/api/model/unload", json={"force": True}).status_code == 200
        for thread in threads:
            thread.join(20)
    statuses = {name: sorted(response.status_code for response in found) for name, found in answers.items()}
    assert statuses == {"ann": [200, 503, 503], "bob": [503]}, "one was running; those that waited are told"
