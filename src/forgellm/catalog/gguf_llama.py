"""Whether a GGUF header describes a llama model that can be converted: sizes in bounds, every tensor in its shape.

Must not read tensor data: that is the converter's, in the worker.
"""

import math
from pathlib import Path

from forgellm.catalog.gguf import GGUFHeader
from forgellm.errors import ModelInvalid, UnsupportedFormat

_BOUNDS = {
    "llama.block_count": (1, 2000),
    "llama.embedding_length": (1, 1 << 18),
    "llama.feed_forward_length": (1, 1 << 22),
    "llama.attention.head_count": (1, 1 << 14),
    "llama.attention.head_count_kv": (1, 1 << 14),
    "llama.attention.key_length": (2, 1 << 14),
    "llama.context_length": (1, 1 << 40),
}
_DEFAULTED = ("llama.attention.head_count_kv", "llama.attention.key_length", "llama.context_length")
_POSITIVE = ("llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base", "llama.rope.scaling.factor")
_TOKENIZERS = ("gpt2", "llama")


def check(path: Path, header: GGUFHeader) -> None:
    """Raise UnsupportedFormat unless it is a plain llama model, ModelInvalid if sizes and tensors do not agree."""
    if header.architecture != "llama":
        raise UnsupportedFormat(
            f"{path} holds a model of the architecture {header.architecture[:64]!r}; of GGUF files only the llama "
            "family is supported: take the model in safetensors"
        )
    if header.metadata.get("llama.expert_count", 0):
        raise UnsupportedFormat(f"{path} holds a mixture of experts, which is not converted: take it in safetensors")
    kind = header.metadata.get("tokenizer.ggml.model")
    if kind not in _TOKENIZERS:
        raise UnsupportedFormat(
            f"{path}: the tokenizer kind {kind!r} is not supported; {' and '.join(_TOKENIZERS)} are"
        )
    sizes = {key: _size(path, header, key, *bounds) for key, bounds in _BOUNDS.items()}
    for key in _POSITIVE:
        value = header.metadata.get(key, 1.0)
        if not (type(value) is float and 0 < value < math.inf):
            raise ModelInvalid(f"{path}: the metadata {key} is {str(value)[:50]}; it must be a positive number")
    _check_shapes(path, header, sizes)


def kv_bytes_per_token(header: GGUFHeader) -> int:
    """What one token adds to the KV cache in half precision; of a header that check() has let through."""
    layers, hidden, heads = (
        header.metadata[f"llama.{key}"] for key in ("block_count", "embedding_length", "attention.head_count")
    )
    kv_heads = header.metadata.get("llama.attention.head_count_kv") or heads
    head_dim = header.metadata.get("llama.attention.key_length") or hidden // heads
    return int(2 * 2 * layers * kv_heads * head_dim)


def _size(path: Path, header: GGUFHeader, key: str, low: int, high: int) -> int | None:
    value = header.metadata.get(key)
    if value is None and key in _DEFAULTED:
        return None
    if not (type(value) is int and low <= value <= high):
        raise ModelInvalid(
            f"{path}: the metadata {key} is {str(value)[:50]}; it must be a whole number, {low} to {high}"
        )
    return value


def _check_shapes(path: Path, header: GGUFHeader, sizes: dict[str, int | None]) -> None:
    """Every tensor of a llama model, in llama.cpp's order of dimensions (fastest first), and no other."""
    hidden, inner, heads = (
        sizes[f"llama.{key}"] or 1 for key in ("embedding_length", "feed_forward_length", "attention.head_count")
    )
    head_dim = sizes["llama.attention.key_length"] or hidden // heads
    kv_heads = sizes["llama.attention.head_count_kv"] or heads
    if heads % kv_heads or head_dim < 1 or (sizes["llama.attention.key_length"] is None and hidden % heads):
        raise ModelInvalid(f"{path}: {heads} heads, {kv_heads} kv heads and {hidden} dimensions do not go together")
    if header.metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedFormat(f"{path}: rotary embeddings over a part of each head are not supported")
    layer = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, heads * head_dim),
        "attn_k": (hidden, kv_heads * head_dim),
        "attn_v": (hidden, kv_heads * head_dim),
        "attn_output": (heads * head_dim, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (hidden, inner),
        "ffn_up": (hidden, inner),
        "ffn_down": (inner, hidden),
    }
    expected: dict[str, tuple[int, ...]] = {"output_norm.weight": (hidden,)}
    for number in range(sizes["llama.block_count"] or 0):
        expected |= {f"blk.{number}.{part}.weight": shape for part, shape in layer.items()}
    found = {tensor.name: tensor.shape for tensor in header.tensors}
    embedding = found.pop("token_embd.weight", None)
    if embedding is None or len(embedding) != 2 or embedding[0] != hidden:
        raise ModelInvalid(f"{path}: the tensor token_embd.weight is missing, or its shape is not {hidden} x tokens")
    if found.pop("output.weight", embedding) != embedding:
        raise ModelInvalid(f"{path}: output.weight has another shape than token_embd.weight")
    if found.pop("rope_freqs.weight", (head_dim // 2,)) != (head_dim // 2,):
        raise ModelInvalid(f"{path}: rope_freqs.weight must have {head_dim // 2} elements")
    for name, shape in expected.items():
        if found.pop(name, None) != shape:
            raise ModelInvalid(
                f"{path}: the tensor {name} is missing, or its shape is not {' x '.join(map(str, shape))}"
            )
    if found:
        raise UnsupportedFormat(
            f"{path}: the tensor {next(iter(found))[:64]!r} is not part of a plain llama model: take it in safetensors"
        )
