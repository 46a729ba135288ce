"""Converts a GGUF file (llama family) once into a folder that mlx_lm.load reads; the tensors' values do not change.

Must not trust the file: the catalogue checks every size, shape and offset before a tensor is read.
"""

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from forgellm.catalog import folder, gguf_llama
from forgellm.catalog.gguf import GGUFHeader, GGUFTensor, read_header
from forgellm.catalog.lock import exclusive
from forgellm.errors import ModelInvalid, UnsupportedFormat
from forgellm.worker.gguf_tokenizer import write_tokenizer

TELL_S = 5.0

_FORMAT = 1
"""Goes into the cache key: raise it when the conversion changes, so that older conversions are not used."""

_GROUP = 32
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_PARTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ROPE_FACTORS = "rope_freqs.weight"

Arrays = dict[str, mx.array]


def converted(gguf_path: Path, cache_dir: Path, progress: Callable[[float, str], None]) -> Path:
    """Folder with config.json, model.safetensors and a tokenizer for `gguf_path`; made if the cache has none.

    The folder appears under its name complete or not at all, whatever kills this process. The cache key is the file's
    name, size, modification time and header. Raises ModelInvalid or UnsupportedFormat, naming the file and the reason.
    """
    header = read_header(gguf_path)
    gguf_llama.check(gguf_path, header)
    target = cache_dir.expanduser() / "gguf" / f"{gguf_path.stem}-{_digest(gguf_path, header)}"
    if target.is_dir():
        return target
    lock = target.with_name(target.name + ".lock")
    with exclusive(lock, timeout_s=3600.0, waiting=lambda: progress(0.0, "waiting for another worker's conversion")):
        if not target.is_dir():
            part = target.with_name(target.name + ".part")
            shutil.rmtree(part, ignore_errors=True)  # left by a conversion that was killed
            part.mkdir(parents=True)
            try:
                _convert(gguf_path, header, part, progress)
                part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return target


def _digest(path: Path, header: GGUFHeader) -> str:
    stat = path.stat()
    digest = hashlib.sha256(f"{_FORMAT} {_small_dtype()} {stat.st_size} {stat.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(header.header_bytes))
    return digest.hexdigest()[:16]


def _small_dtype() -> mx.Dtype:
    """Of norms, scales and biases: they decide the dtype of the activations. Half floats crawl on a CPU."""
    return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else mx.float16


def _convert(path: Path, header: GGUFHeader, part: Path, progress: Callable[[float, str], None]) -> None:
    config = _config(path, header)
    write_tokenizer(path, header.metadata, part, config["vocab_size"])
    weights: Arrays = {}
    quantization: dict[str, Any] = {}
    for number, tensor in enumerate(header.tensors):
        progress(0.9 * number / len(header.tensors), "converting the GGUF file")
        if tensor.name == _ROPE_FACTORS:
            continue
        module = module_name(path, tensor.name)
        for name, array in unpack(tensor, _read(path, tensor)).items():
            is_small = name != "weight" or array.ndim == 1
            weights[f"{module}.{name}"] = array.astype(_small_dtype()) if is_small else array
        if bits := _BITS.get(tensor.kind.name):
            quantization[module] = {"group_size": _GROUP, "bits": bits}
    if quantization:
        config["quantization"] = {"group_size": _GROUP, "bits": 4, **quantization}  # every module has its own bits
    with _still_at_it(lambda: progress(0.9, "writing the converted model")):
        try:
            mx.save_safetensors(str(part / "model.safetensors"), weights, {"format": "mlx"})
        except RuntimeError as error:  # how mlx reports what the system said of the file
            raise OSError(f"{part / 'model.safetensors'}: {error}") from error
        (part / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        for written in part.iterdir():
            _flush(written)
    folder.check(part)
    progress(1.0, "converted")


@contextmanager
def _still_at_it(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at once, and every few seconds from a thread: one native call writes many GB, and is no hang."""
    is_done = threading.Event()

    def go_on() -> None:
        while not is_done.wait(TELL_S):
            tell()

    tell()
    thread = threading.Thread(target=go_on, name="writing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def _read(path: Path, tensor: GGUFTensor) -> bytes:
    with path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.data_bytes)
    if len(data) != tensor.data_bytes:
        raise ModelInvalid(f"{path} became shorter while it was read; download it again")
    return data


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unpack(tensor: GGUFTensor, data: bytes) -> Arrays:
    """Parts ("weight", and of quantised tensors "scales", "biases") as mlx holds them, from llama.cpp's blocks.

    A weight has the shape (rows, columns), or (columns,); a quantised one is uint32 of shape (rows, columns * bits /
    32) with scales and biases of shape (rows, columns / 32) in float16, so that weight = scale * q + bias. Layouts:
    ggml-common.h, block_q4_0 (scale, 16 bytes), block_q4_1 (scale, minimum, 16 bytes), block_q8_0 (scale, 32 bytes).
    """
    shape = tuple(reversed(tensor.shape))
    kind = tensor.kind.name
    if kind in ("F32", "F16"):
        return {"weight": mx.array(np.frombuffer(data, np.float32 if kind == "F32" else np.float16).reshape(shape))}
    rows, columns = math.prod(shape[:-1]), shape[-1]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, tensor.kind.block_bytes)
    scales = blocks[:, :2].copy().view(np.float16)
    if kind == "Q8_0":
        packed = blocks[:, 2:] ^ np.uint8(0x80)  # signed to unsigned: q + 128
        biases = scales * np.float16(-128)
    else:
        start = 2 if kind == "Q4_0" else 4
        biases = scales * np.float16(-8) if start == 2 else blocks[:, 2:4].copy().view(np.float16)
        nibbles = np.concatenate([blocks[:, start:] & 0x0F, blocks[:, start:] >> 4], axis=1)  # elements 0-15, 16-31
        packed = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return {
        "weight": mx.array(np.ascontiguousarray(packed).view(np.uint32).reshape(rows, -1)),
        "scales": mx.array(scales.reshape(rows, columns // _GROUP)),
        "biases": mx.array(biases.reshape(rows, columns // _GROUP)),
    }


def module_name(path: Path, tensor_name: str) -> str:
    """mlx-lm's name of the module that a llama.cpp tensor belongs to. Raises UnsupportedFormat if there is none."""
    parts = tensor_name.split(".")
    if len(parts) == 2 and parts[1] == "weight" and parts[0] in _TOP_PARTS:
        return _TOP_PARTS[parts[0]]
    if len(parts) == 4 and parts[0] == "blk" and parts[3] == "weight" and parts[2] in _LAYER_PARTS:
        return f"model.layers.{int(parts[1])}.{_LAYER_PARTS[parts[2]]}"
    raise UnsupportedFormat(
        f"{path}: the tensor {tensor_name!r} is not part of a plain llama model; take the model's safetensors instead"
    )


def _config(path: Path, header: GGUFHeader) -> dict[str, Any]:
    """config.json of the model, from metadata that the catalogue has checked against the tensors."""
    get: Callable[..., Any] = header.metadata.get
    heads = get("llama.attention.head_count")
    hidden = get("llama.embedding_length")
    config: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": get("llama.block_count"),
        "intermediate_size": get("llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("llama.attention.head_count_kv", heads),
        "head_dim": get("llama.attention.key_length", hidden // heads),
        "rms_norm_eps": get("llama.attention.layer_norm_rms_epsilon", 1e-5),
        "vocab_size": next(t.shape[1] for t in header.tensors if t.name == "token_embd.weight"),
        "max_position_embeddings": get("llama.context_length", 2048),
        "rope_theta": get("llama.rope.freq_base", 10000.0),
        "rope_traditional": True,  # llama.cpp keeps the rows of q and k in the order of the original llama weights
        "tie_word_embeddings": not any(t.name == "output.weight" for t in header.tensors),
    }
    if scaling := _rope_scaling(path, header, config["rope_theta"]):
        config["rope_scaling"] = scaling
    return config


def _rope_scaling(path: Path, header: GGUFHeader, base: float) -> Mapping[str, Any] | None:
    get = header.metadata.get
    kind = get("llama.rope.scaling.type", "none")
    factors = next((t for t in header.tensors if t.name == _ROPE_FACTORS), None)
    if factors is not None:
        return _llama3_scaling(path, factors, base)
    if kind == "none":
        return None
    if kind == "linear":
        return {"type": "linear", "factor": get("llama.rope.scaling.factor", 1.0)}
    raise UnsupportedFormat(f"{path}: the rope scaling {kind!r} is not supported; take the model's safetensors instead")


def _llama3_scaling(path: Path, tensor: GGUFTensor, base: float) -> Mapping[str, Any]:
    """The llama3 rope settings that give the factors which the file holds for each frequency (1 … `factor`).

    The file has lost the settings themselves; every published llama 3 uses these three numbers. Raises
    UnsupportedFormat if they do not give the factors in the file.
    """
    if tensor.kind.name != "F32":
        raise UnsupportedFormat(f"{path}: the rope factors in the file are not F32; take the model's safetensors")
    stored = np.frombuffer(_read(path, tensor), np.float32)
    settings = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factor = float(stored.max())
    wavelengths = 2 * np.pi * base ** (np.arange(tensor.elements) / tensor.elements)
    smooth = np.clip((8192 / wavelengths - 1.0) / 3.0, 0.0, 1.0)
    expected = 1.0 / ((1 - smooth) / factor + smooth)
    if not np.allclose(stored, expected, rtol=1e-3):
        raise UnsupportedFormat(f"{path}: the rope factors in the file are not those of llama 3; take the safetensors")
    return {"rope_type": "llama3", "factor": factor, **settings}
