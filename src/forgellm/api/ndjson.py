"""Carries one generation to one client, as a stream of JSON lines or all at once. Knows no bodies and no status codes.

Both ways poll: a client that went away is noticed in a tenth of a second, while its request queues, prefills or writes.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from forgellm.api.errors import ClientGone, public_error
from forgellm.api.gate import Gate
from forgellm.api.pool import Pool
from forgellm.errors import ShuttingDown
from forgellm.messages import Request, Usage
from forgellm.supervisor.generation import Generation, Token

POLL_S = 0.1
WRITE_EVERY_S = 0.02
"""A stream faster than this gets several tokens in one write: nobody sees the difference, and both ends save a wake-up
and a system call for each token left out."""

IsGone = Callable[[], bool]


class Answer:
    """One generation on its way to one client. Holds a place in the gate until close(), which also aborts it."""

    def __init__(self, pool: Pool, request: Request, gate: Gate, is_gone: IsGone) -> None:
        """Submit the request. Raises Unavailable or ShuttingDown if the gate lets nobody in."""
        self._gate = gate
        self._is_gone = is_gone
        self._closed = False
        gate.enter()
        try:
            self.generation = pool.submit(request)
        except BaseException:  # whatever it was, it goes on up; only the place in the gate is given back
            gate.leave()
            raise

    def batches(self) -> Iterator[list[Token]]:
        """All tokens that queued up since the last batch, until the end. Raises what ended it early, too."""
        while True:
            had_ended = self.generation.has_ended  # asked first: tokens may come with the end, after take() gave up
            tokens = self.generation.take(POLL_S)
            if tokens:
                yield tokens
                if any(token.text for token in tokens):  # else nothing was written, and the first text must not wait
                    self.generation.wait_ended(WRITE_EVERY_S)
            elif had_ended:
                return
            if self._is_gone():
                raise ClientGone("the client closed its connection")
            if self._gate.is_stopping and not self.generation.has_ended:
                raise ShuttingDown("the server is shutting down", retry_after_s=5)

    def close(self) -> None:
        """Abort the generation if it still runs, and leave the gate. Idempotent."""
        if not self._closed:
            self._closed = True
            self.generation.close()
            self._gate.leave()


def counts(generation: Generation) -> dict[str, Any]:
    """What a finished generation cost; times in seconds, rates in tokens/s.

    `tokens_per_sec` is the pace from the first token to the last one, `prompt_tokens_per_sec` that of the prompt's
    tokens that were not in the prefix cache.
    """
    usage = generation.usage or Usage(prompt_tokens=0, completion_tokens=0)
    total_s = generation.total_s or 0.0
    first_s = generation.time_to_first_token_s
    if usage.completion_tokens > 1 and usage.decode_s > 0:
        rate = (usage.completion_tokens - 1) / usage.decode_s
    else:
        rate = usage.completion_tokens / total_s if total_s else 0.0
    fresh = usage.prompt_tokens - usage.cached_tokens
    return {
        "generation_time": total_s,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "tokens_per_sec": round(rate, 3),
        "finish_reason": generation.finish_reason,
        "time_to_first_token": total_s if first_s is None else first_s,
        "prompt_tokens_per_sec": round(fresh / usage.prefill_s, 3) if usage.prefill_s > 0 else 0.0,
        "model_name": generation.model,
    }


def lines(first: list[Token], rest: Iterator[list[Token]], generation: Generation) -> Iterator[bytes]:
    """The stream: one write of whole lines per batch, then `complete`, or `error` as the last line."""
    try:
        if first:
            yield _chunks(first)
        for tokens in rest:
            written = _chunks(tokens)
            if written:
                yield written
        yield _line({"type": "complete", **counts(generation)})
    except ClientGone:
        return
    except Exception as error:  # noqa: BLE001 - the headers are sent: this line is the only way left to say it
        code, message = public_error(error)
        yield _line({"type": "error", "code": code, "error": message})


def _chunks(tokens: list[Token]) -> bytes:
    now = time.time()
    return b"".join(_line({"type": "chunk", "text": token.text, "timestamp": now}) for token in tokens if token.text)


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"
