"""Writes model files byte by byte: safetensors, GGUF, small llama folders, adapters.

Must not need mlx, as the catalogue does not.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 40,
    "tie_word_embeddings": True,
}


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file; `length` is what it says of its header, the truth by default."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensors(shapes: Mapping[str, Sequence[int]], dtype: str = "F32") -> bytes:
    """A sound safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return safetensors(header, bytes(end))


def llama_shapes(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a llama model, tied embeddings."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def llama_folder(folder: Path, **config: Any) -> Path:
    """A folder that passes every check: config, tokenizer and zeros; `config` overrides what config.json says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "model.safetensors").write_bytes(tensors(llama_shapes()))
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def adapter_folder(folder: Path, **config: Any) -> Path:
    """An adapter as mlx_lm.lora writes it, with one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": "org/base", "fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 8}}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    content = tensors({"model.layers.0.self_attn.q_proj.lora_a": (32, 8)})
    (folder / "adapters.safetensors").write_bytes(content)
    (folder / "0000100_adapters.safetensors").write_bytes(content)
    return folder


# GGUF ----------------------------------------------------------------------------------------------------------------

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
_LAYOUTS = {U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q", 5: "<i"}
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q8_0": (8, 32, 34)}

Value = tuple[int, Any]
"""A metadata type and its value; an array is (ARRAY, (item type, items))."""
Tensor = tuple[tuple[int, ...], str, bytes]
"""Shape as llama.cpp has it (fastest dimension first), type name, data."""


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        item_kind, items = content
        return struct.pack("<IQ", item_kind, len(items)) + b"".join(value(item_kind, item) for item in items)
    return struct.pack(_LAYOUTS[kind], content)


def gguf(metadata: Mapping[str, Value], tensors: Mapping[str, Tensor], version: int = 3) -> bytes:
    """A GGUF file in llama.cpp's layout, aligned to 32 bytes."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    out += b"".join(string(key) + struct.pack("<I", kind) + value(kind, item) for key, (kind, item) in metadata.items())
    data = b""
    for name, (shape, type_name, content) in tensors.items():
        data += bytes(-len(data) % 32)
        out += string(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        out += struct.pack("<IQ", TYPES[type_name][0], len(data))
        data += content
    return out + bytes(-len(out) % 32) + data


def zeros(*shape: int, type_name: str = "F32") -> Tensor:
    _, block, block_bytes = TYPES[type_name]
    return shape, type_name, bytes(math.prod(shape) // block * block_bytes)


def llama_metadata(config: Mapping[str, Any] = CONFIG) -> dict[str, Value]:
    """Metadata of a llama model; the tokenizer has a token for each id, and no merges."""
    vocab = config["vocab_size"]
    return {
        "general.architecture": (STRING, "llama"),
        "llama.block_count": (U32, config["num_hidden_layers"]),
        "llama.embedding_length": (U32, config["hidden_size"]),
        "llama.feed_forward_length": (U32, config["intermediate_size"]),
        "llama.attention.head_count": (U32, config["num_attention_heads"]),
        "llama.attention.head_count_kv": (U32, config["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": (F32, config["rms_norm_eps"]),
        "llama.context_length": (U32, 128),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [f"t{number}" for number in range(vocab)])),
        "tokenizer.ggml.merges": (ARRAY, (STRING, [])),
        "tokenizer.ggml.eos_token_id": (U32, 2),
    }


def llama_tensors(config: Mapping[str, Any] = CONFIG, type_name: str = "F32") -> dict[str, Tensor]:
    """Zeros for every tensor of a llama model, norms in F32, tied embeddings."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    found = {
        "token_embd.weight": zeros(hidden, config["vocab_size"], type_name=type_name),
        "output_norm.weight": zeros(hidden),
    }
    for number in range(config["num_hidden_layers"]):
        found |= {
            f"blk.{number}.attn_q.weight": zeros(hidden, hidden, type_name=type_name),
            f"blk.{number}.attn_k.weight": zeros(hidden, kv, type_name=type_name),
            f"blk.{number}.attn_v.weight": zeros(hidden, kv, type_name=type_name),
            f"blk.{number}.attn_output.weight": zeros(hidden, hidden, type_name=type_name),
            f"blk.{number}.ffn_gate.weight": zeros(hidden, inner, type_name=type_name),
            f"blk.{number}.ffn_up.weight": zeros(hidden, inner, type_name=type_name),
            f"blk.{number}.ffn_down.weight": zeros(inner, hidden, type_name=type_name),
            f"blk.{number}.attn_norm.weight": zeros(hidden),
            f"blk.{number}.ffn_norm.weight": zeros(hidden),
        }
    return found
