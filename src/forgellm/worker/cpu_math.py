"""GELU, SwiGLU and attention that are fast on a CPU too. Must not be used where gradients are wanted.

On a Linux CPU mlx 0.32 computes exp, erf and tanh one element at a time (27 to 55 ns each); numpy's exp takes 1 ns,
and one made of mlx's multiplications and additions 6 ns. Elsewhere, and for other dtypes than float32, these are
mlx's own functions.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

QUERIES_TOGETHER = 1024
"""The scores of all queries at once would be 4 GB for 8192 tokens and 16 heads. So in blocks of these."""

_BLOCK = 1 << 15  # elements: three such arrays fit into a core's cache

# erfc(z) = t (a1 + a2 t + ... + a5 t^4) exp(-z^2), t = 1 / (1 + p z), z >= 0; the error is at most 1.5e-7.
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_P = np.float32(0.3275911)
_A = tuple(map(np.float32, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))

# 2^f = sum of c_k f^k, c_k = ln(2)^k / k!; for |f| <= 1/2 the rest is below 2e-7 of it, two of float32's own steps.
_POWERS_OF_2 = [math.log(2) ** k / math.factorial(k) for k in range(7)]

_WORTH_IT = 8192  # elements: below, a dozen operations take longer than one slow one


def install() -> None:
    """Have the models that mlx-lm makes from now on use swiglu(). They import mlx-lm's own by its name."""
    module: Any = importlib.import_module("mlx_lm.models.activations")
    module.swiglu = swiglu(module.swiglu)


def swiglu(own: Callable[[mx.array, mx.array], mx.array]) -> Callable[[mx.array, mx.array], mx.array]:
    """silu(gate) x, both of one shape; stays lazy. `own` is mlx-lm's, for all that it is not slow with."""

    def fast(gate: mx.array, x: mx.array) -> mx.array:
        if gate.size < _WORTH_IT or not _is_slow(gate):
            return own(gate, x)
        power = mx.clip(gate * -math.log2(math.e), -126, 126)  # of 2, as exp(-gate); float32 has no more exponents
        whole = mx.round(power)
        rest = power - whole
        two_to_rest = rest * _POWERS_OF_2[-1] + _POWERS_OF_2[-2]
        for factor in _POWERS_OF_2[-3::-1]:
            two_to_rest = two_to_rest * rest + factor
        two_to_whole = mx.view((whole.astype(mx.int32) + 127) << 23, mx.float32)  # IEEE 754: the exponent's bits
        return gate * x / (1 + two_to_rest * two_to_whole)

    return fast


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), of any shape."""
    if not _is_slow(x):
        exact: mx.array = nn.gelu(x)
        return exact
    given = np.asarray(x).reshape(-1)
    out = np.empty_like(given)
    for start in range(0, given.size, _BLOCK):
        piece = given[start : start + _BLOCK]
        size = np.abs(piece)
        z = size * np.float32(math.sqrt(0.5))
        t = 1 / (1 + _P * z)
        tail = t * _A[0]
        for factor in _A[1:]:
            tail += factor
            tail *= t
        tail *= np.exp(-z * z)
        tail *= size
        tail *= np.float32(0.5)
        np.subtract(np.maximum(piece, 0), tail, out=out[start : start + _BLOCK])
    return mx.array(out.reshape(x.shape))


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: mx.array) -> mx.array:
    """Each (batch, heads, tokens, size); `mask` (batch, 1, 1, tokens) is true where a token may be looked at."""
    if not _is_slow(queries):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    bias = np.where(np.asarray(mask), np.float32(0), np.float32(-np.inf))
    turned = keys.transpose(0, 1, 3, 2)
    blocks = []
    for start in range(0, queries.shape[2], QUERIES_TOGETHER):
        scores = np.asarray((queries[:, :, start : start + QUERIES_TOGETHER] * scale) @ turned) + bias
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        blocks.append(mx.array(scores) @ values)
    return mx.concatenate(blocks, axis=2)


def _is_slow(x: mx.array) -> bool:
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu
