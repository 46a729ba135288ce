"""One request inside the batch: what it has given so far, and its own sampler and processors; and the prefill pace.

Knows no generator, and runs no model.
"""

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from forgellm.messages import Sampling, Usage
from forgellm.worker import sampling
from forgellm.worker.text import TextStream

MAX_CHUNK_TOKENS = 2048
MIN_CHUNK_TOKENS = 16


class PrefillPace:
    """How many prompt tokens fit into one chunk, by the tokens per second of the chunks so far; starts small.

    A chunk may take `chunk_s` while other streams wait for it, and twice that while none does: larger chunks are
    faster (demo model, two cores: 172 tokens/s in chunks of 80, 221 in one of 376). While none does, it may also take
    half as much again, if that spares a short last chunk.
    """

    def __init__(self, chunk_s: float) -> None:
        self._chunk_s = chunk_s
        self._tokens_per_s: float | None = None
        self._asked = MIN_CHUNK_TOKENS

    def tokens(self, prompts: int, unread: int, *, is_alone: bool) -> int:
        """Tokens of each of `prompts` to process in the next chunk, 16 to 2048 for all of them together. The longest of
        them has `unread` tokens left."""
        seconds = self._chunk_s * (2 if is_alone else 1)
        fitting = int((self._tokens_per_s or 0.0) * seconds)
        if is_alone and fitting < unread * prompts <= 1.5 * fitting:
            fitting = unread * prompts
        self._asked = min(max(fitting, MIN_CHUNK_TOKENS), MAX_CHUNK_TOKENS)
        return max(1, self._asked // prompts)

    def observe(self, tokens: int, seconds: float) -> None:
        """A chunk took so long. The short last chunk of a prompt is slow for its size, and does not slow the pace."""
        if tokens <= 0 or seconds <= 0:
            return
        measured = tokens / seconds
        if self._tokens_per_s is None:
            self._tokens_per_s = measured
        elif measured > self._tokens_per_s or 2 * tokens >= self._asked:
            self._tokens_per_s = 0.5 * (self._tokens_per_s + measured)


@dataclass(slots=True)
class Running:
    """One request in the batch. Times are monotonic seconds."""

    request_id: str
    stream: TextStream
    prompt_tokens: int
    cached_tokens: int
    top_logprobs: int | None
    raw_logprobs: deque[mx.array] | None
    added: float
    unread_tokens: int
    joined: float | None = None
    first_token: float | None = None
    last_token: float = 0.0
    completion_tokens: int = 0
    failure: Exception | None = None

    def usage(self, now: float) -> Usage:
        joined = self.joined if self.joined is not None else self.added
        first = self.first_token if self.first_token is not None else now
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            prefill_s=first - joined,
            decode_s=max(0.0, self.last_token - first),
        )


# BatchGenerator calls samplers and processors of single requests in the middle of a step of all; what they raise is
# kept for that request, so that the step goes on.


def guarded_sampler(running: Running, wanted: Sampling, position: int) -> Callable[[mx.array], mx.array]:
    if wanted.temperature == 0:
        return sampling.greedy
    seed = wanted.seed
    sampler = sampling.SeededSampler(wanted, secrets.randbits(63) if seed is None else seed, position)

    def sample(logits: mx.array) -> mx.array:
        try:
            return sampler(logits)
        except Exception as error:  # noqa: BLE001 - see above
            running.failure = error
            return sampling.greedy(logits)

    return sample


def guarded_processors(running: Running, changes: list[sampling.Processor]) -> list[sampling.Processor]:
    """`changes` as one processor; where logprobs are wanted, it notes those of the unchanged logits first."""
    if not changes and running.raw_logprobs is None:
        return []

    def apply(tokens: mx.array, logits: mx.array) -> mx.array:
        try:
            if running.raw_logprobs is not None:
                row = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
                mx.async_eval(row)  # type: ignore[no-untyped-call]  # mlx's stub has no types; read during the next step
                running.raw_logprobs.append(row)
            for change in changes:
                logits = change(tokens, logits)
        except Exception as error:  # noqa: BLE001 - see above
            running.failure = error
        return logits

    return [apply]
