"""How the next token of one sequence is chosen, as lazy mlx operations on logits.

Knows no batch and no request; its randomness is a function of (seed, position) alone, never of a global generator.
"""

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from forgellm.messages import Sampling, TokenLogprobs

Processor = Callable[[mx.array, mx.array], mx.array]
"""(all tokens so far [n], logits [1, vocab]) -> logits [1, vocab]."""

MAX_NUCLEUS = 4096
"""Top-p looks at so many tokens: sorting a whole vocabulary takes 8 ms a token on a CPU, this takes one."""

_MASK = (1 << 64) - 1


def greedy(logits: mx.array) -> mx.array:
    """The likeliest tokens, [n, vocab] -> [n]. One shared function: the batch then samples all rows in one call."""
    return mx.argmax(logits, axis=-1)


def position_key(seed: int, position: int) -> mx.array:
    """The random key of one generated token. Position 0 is the first one.

    SplitMix64's finaliser (Steele, Lea and Flood 2014) of seed + position steps, so that neighbouring seeds and
    positions share nothing.
    """
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    key: mx.array = mx.random.key(x ^ (x >> 31))
    return key


class SeededSampler:
    """Chooses the tokens of one sequence, one call per position, [1, vocab] logits -> [1].

    Filters in the order of llama.cpp: top-k, top-p of what is left, min-p, and the temperature last.
    """

    def __init__(self, sampling: Sampling, seed: int, position: int = 0) -> None:
        self._sampling = sampling
        self._seed = seed
        self._position = position

    def __call__(self, logits: mx.array) -> mx.array:
        key = position_key(self._seed, self._position)
        self._position += 1
        kept = keep_likely(logits.astype(mx.float32), self._sampling)
        scaled = kept * (1.0 / self._sampling.temperature)
        # Gumbel-max, and not mx.random.categorical: that looks a number up in the cumulated probabilities, where
        # the last bits of the logits, which differ from batch to batch, choose between neighbours of small probability.
        return mx.argmax(scaled + mx.random.gumbel(scaled.shape, key=key), axis=-1)


def keep_likely(logits: mx.array, sampling: Sampling) -> mx.array:
    """`logits` [1, vocab] with -inf for every token that top_k, top_p or min_p drops; at least one token is left.

    min_p drops what is less likely than min_p times the likeliest (Nguyen et al. 2024); top_p keeps the smallest set
    whose mass reaches top_p (Holtzman et al. 2019), ties at its edge included.
    """
    vocab = logits.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocab else 0
    floor: mx.array | None = None
    if top_k or sampling.top_p < 1:
        limit = min(top_k or MAX_NUCLEUS, vocab)
        likely = mx.sort(logits if limit == vocab else mx.topk(logits, limit, axis=-1), axis=-1)  # ascending
        floor = likely[:, :1]
        if sampling.top_p < 1:
            mass = mx.exp(likely - mx.logsumexp(likely if top_k else logits, axis=-1, keepdims=True))
            above = mx.cumsum(mass, axis=-1, reverse=True, inclusive=False)
            # The last index is always kept: nothing is above it.
            dropped = mx.minimum((above >= sampling.top_p).sum(axis=-1, keepdims=True), limit - 1)
            floor = mx.take_along_axis(likely, dropped, axis=-1)
    if sampling.min_p > 0:
        relative = logits.max(axis=-1, keepdims=True) + float(np.log(sampling.min_p))
        floor = relative if floor is None else mx.maximum(floor, relative)
    return logits if floor is None else mx.where(logits >= floor, logits, -mx.inf)


def processors(sampling: Sampling, prompt_tokens: int) -> list[Processor]:
    """What changes the logits before the choice: empty if nothing does.

    The repetition penalty is sign-aware and counts prompt and answer (Keskar et al. 2019, as in transformers);
    presence and frequency penalties count the answer only (as OpenAI's API); logit_bias is added.
    """
    found: list[Processor] = []
    if sampling.repetition_penalty != 1.0:
        found.append(_repetition(sampling.repetition_penalty))
    if sampling.presence_penalty:
        found.append(_presence(sampling.presence_penalty, prompt_tokens))
    if sampling.frequency_penalty:
        found.append(_frequency(sampling.frequency_penalty, prompt_tokens))
    if sampling.logit_bias:
        found.append(_bias(sampling.logit_bias))
    return found


def _repetition(penalty: float) -> Processor:
    def apply(tokens: mx.array, logits: mx.array) -> mx.array:
        chosen = logits[:, tokens]
        logits[:, tokens] = mx.where(chosen < 0, chosen * penalty, chosen / penalty)
        return logits

    return apply


def _presence(penalty: float, prompt_tokens: int) -> Processor:
    def apply(tokens: mx.array, logits: mx.array) -> mx.array:
        generated = tokens[prompt_tokens:]
        if generated.size:
            logits[:, generated] = logits[:, generated] - penalty  # a repeated index writes the same value again
        return logits

    return apply


def _frequency(penalty: float, prompt_tokens: int) -> Processor:
    def apply(tokens: mx.array, logits: mx.array) -> mx.array:
        generated = tokens[prompt_tokens:]
        return logits.at[:, generated].subtract(penalty) if generated.size else logits

    return apply


def _bias(bias: tuple[tuple[int, float], ...]) -> Processor:
    tokens = mx.array([token for token, _ in bias])
    values = mx.array([value for _, value in bias])

    def apply(_: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, tokens].add(values.astype(logits.dtype))

    return apply


def token_logprobs(row: mx.array, token: int, top: int, text_of: Callable[[int], str]) -> TokenLogprobs:
    """The wire form of one token's logprobs. `row`: [vocab] log-probabilities, evaluated already, so that reading them
    does not wait for the step that runs now. `top` 0: the chosen token only."""
    if row.dtype != mx.float32:
        row = row.astype(mx.float32, stream=mx.cpu)  # not behind the running step
    values = np.array(row, copy=None)
    likeliest: list[int] = []
    if top:
        chosen = np.argpartition(values, -top)[-top:] if top < values.size else np.arange(values.size)
        likeliest = chosen[np.argsort(-values[chosen], kind="stable")].tolist()
    return (
        token,
        text_of(token),
        float(values[token]),
        tuple((other, text_of(other), float(values[other])) for other in likeliest),
    )
