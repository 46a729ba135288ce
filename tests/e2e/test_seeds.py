"""The same seed gives the same text, whichever dialect asks."""

from typing import Any

import pytest

from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

TURNS = [{"role": "user", "content": "Tell me something about the sea."}]
PROMPT = "The sea is"
BASE: dict[str, Any] = {"model": "smollm2", "temperature": 1.5, "top_p": 0.9, "top_k": 50, "seed": 7, "max_tokens": 8}
OLLAMA = {name: BASE[name] for name in ("temperature", "top_p", "top_k", "seed")}
OLLAMA |= {"num_predict": 8, "repeat_penalty": 1.0}


def said(daemon: Daemon, path: str, body: dict[str, Any]) -> Any:
    answer = daemon.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_seed_one_text_over_all_dialects(demo_daemon):
    """With the same messages and sampling; each dialect has defaults of its own."""
    own = {**BASE, "prompt": TURNS[0]["content"], "repetition_penalty": 1.0}
    chats = [
        said(demo_daemon, "/v1/chat/completions", {**BASE, "messages": TURNS})["choices"][0]["message"]["content"],
        said(demo_daemon, "/v1/messages", {**BASE, "messages": TURNS})["content"][0]["text"],
        said(demo_daemon, "/api/chat", {"model": "smollm2", "messages": TURNS, "options": OLLAMA, "stream": False})[
            "message"
        ]["content"],
        said(demo_daemon, "/api/model/generate", own)["text"],
    ]
    assert chats == [chats[0]] * 4
    raws = [
        said(demo_daemon, "/v1/completions", {**BASE, "prompt": PROMPT})["choices"][0]["text"],
        said(
            demo_daemon,
            "/api/generate",
            {"model": "smollm2", "prompt": PROMPT, "raw": True, "options": OLLAMA, "stream": False},
        )["response"],
        said(demo_daemon, "/api/model/generate", {**own, "prompt": PROMPT, "is_base_model": True})["text"],
    ]
    assert raws == [raws[0]] * 3
    other = said(demo_daemon, "/v1/messages", {**BASE, "seed": 8, "messages": TURNS})["content"][0]["text"]
    assert other != chats[0]
