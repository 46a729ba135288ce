"""Keys and values of past prompts and answers, so that a prompt that begins the same way skips that part.

Holds caches only; runs no model. A reused prefix is what the model computed for the same tokens, so answers stay.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, LRUPromptCache, RotatingKVCache, make_prompt_cache

from forgellm.errors import Unsupported

MAX_SEQUENCES = 256
MIN_TOKENS = 4
"""Shorter sequences are not worth an entry."""


def new_cache(model: Any, max_kv_size: int | None) -> list[Any]:
    """An empty cache for one sequence; with `max_kv_size`, every growing layer gets a rotating window of that size.

    (mlx-lm itself ignores max_kv_size for the models that make their own cache, as the llama family does.)
    Raises Unsupported for a model whose cache has a layer that cannot be capped.
    """
    cache = make_prompt_cache(model)
    if max_kv_size is None:
        return list(cache)
    capped: list[Any] = []
    for layer in cache:
        if type(layer) is KVCache:
            capped.append(RotatingKVCache(max_size=max_kv_size))
        elif type(layer) is RotatingKVCache:
            capped.append(RotatingKVCache(max_size=min(layer.max_size, max_kv_size)))
        else:
            raise Unsupported(
                f"max_kv_size: this model keeps a {type(layer).__name__}, which cannot be capped; leave it out",
                field="max_kv_size",
            )
    return capped


def has_window(cache: list[Any]) -> bool:
    """Whether a layer keeps only the last tokens: by max_kv_size, or in a model with sliding windows."""
    return any(isinstance(layer, RotatingKVCache) for layer in cache)


class PrefixCache:
    """At most `max_bytes` of caches by their tokens, the oldest dropped first; 0 switches it off.

    Caches of different `max_kv_size` never mix.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lru = LRUPromptCache(max_size=MAX_SEQUENCES, max_bytes=max_bytes)

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    @property
    def nbytes(self) -> int:
        return int(self._lru.nbytes)

    def take(self, tokens: list[int], max_kv_size: int | None) -> tuple[list[Any] | None, int]:
        """(a copy of the longest known cache of a prefix of `tokens`, its length), or (None, 0).

        The prefix is at least one token shorter than `tokens`: the model needs something to go on from.
        """
        if not self.is_on or len(tokens) < 2:
            return None, 0
        known = tokens[:-1]
        cache, rest = self._lru.fetch_nearest_cache(max_kv_size, known)
        length = len(known) - len(rest)
        return (cache, length) if cache is not None and length else (None, 0)

    def put(self, tokens: list[int], cache: list[Any], max_kv_size: int | None) -> None:
        """Keep `cache`, which holds exactly `tokens`. Too large a cache is dropped, not stored."""
        if not self.is_on or len(tokens) < MIN_TOKENS or any(layer.empty() for layer in cache):
            return
        if sum(layer.nbytes for layer in cache) > self._max_bytes:
            return
        # Starts the copy out of the batch now, without waiting: an unevaluated slice would keep the whole batch alive.
        mx.async_eval([layer.state for layer in cache])  # type: ignore[no-untyped-call]  # mlx has no types
        self._lru.insert_cache(max_kv_size, tokens, cache)

    def clear(self) -> None:
        self._lru.trim_to(n_sequences=0)
