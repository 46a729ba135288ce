"""Many streams from one HTTP server at once, read with as little work as possible. Checks only that it worked.

Chunks are not decoded one by one: the client shares the machine with what it measures.
"""

import http.client
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Sample

TIMEOUT_S = 300.0


def get(port: int, path: str) -> dict[str, Any]:
    """One GET, decoded. Raises RuntimeError with the answer if the status is not 200."""
    return _call(port, "GET", path, None)


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One POST, as get()."""
    return _call(port, "POST", path, json.dumps(body))


def _call(port: int, method: str, path: str, body: str | None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {text!r}")
        found: dict[str, Any] = json.loads(text)
        return found
    finally:
        connection.close()


class Dialect:
    """How one server is asked for a stream, and how its first token and its count are found in the bytes."""

    def __init__(self, path: str, body: Callable[[str, int], dict[str, Any]], first: bytes, count: bytes) -> None:
        self.path = path
        self.body = body
        self.first = re.compile(first)
        self.count = re.compile(count)


def forgellm(model: str) -> Dialect:
    """ForgeLLM's own NDJSON stream, greedy."""
    return Dialect(
        "/api/model/generate",
        lambda prompt, tokens: {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "repetition_penalty": 1,
            "streaming": True,
        },
        first=rb'"type": ?"chunk"',
        count=rb'"completion_tokens": ?(\d+)',
    )


def openai() -> Dialect:
    """mlx_lm.server's chat completions, greedy."""
    return Dialect(
        "/v1/chat/completions",
        lambda prompt, tokens: {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        first=rb'"content": ?"[^"]',
        count=rb'"completion_tokens": ?(\d+)',
    )


class HttpStreams:
    """A server, as a contender."""

    def __init__(self, port: int, dialect: Dialect) -> None:
        self._port = port
        self._dialect = dialect

    def __call__(self, prompts: list[str], tokens: int) -> Sample:
        results: list[tuple[int, float]] = []
        started = time.perf_counter()
        threads = [threading.Thread(target=self._stream, args=(p, tokens, started, results)) for p in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall_s = time.perf_counter() - started
        if len(results) != len(prompts):
            raise RuntimeError(f"{len(prompts) - len(results)} of {len(prompts)} streams failed")
        return Sample(sum(count for count, _ in results), wall_s, tuple(first_s for _, first_s in results))

    def _stream(self, prompt: str, tokens: int, started: float, results: list[tuple[int, float]]) -> None:
        dialect = self._dialect
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        connection.request(
            "POST", dialect.path, json.dumps(dialect.body(prompt, tokens)), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        first_s, tail = None, b""
        while data := response.read1(1 << 16):
            tail = (tail + data)[-4096:] if first_s is not None else tail + data
            if first_s is None and dialect.first.search(tail):
                first_s = time.perf_counter() - started
        connection.close()
        counts = dialect.count.findall(tail)
        if response.status != 200 or first_s is None or not counts:
            raise RuntimeError(f"{response.status}: {tail!r}")
        results.append((int(counts[-1]), first_s))
