"""Checks a model folder (config.json, tokenizer, safetensors) without loading it. Must not write or run anything.

What mlx-lm reads is what is checked: `config.json`, `model*.safetensors`, and the tokenizer's files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from forgellm import typed
from forgellm.catalog import embedding, hub, safetensors
from forgellm.catalog.config_file import implied_parameters, kv_bytes_per_token, read_config, read_object
from forgellm.errors import ModelInvalid, UnsupportedFormat, UntrustedCode
from forgellm.messages import Task

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "*.tiktoken",
    "tiktoken.model",
)
_MAX_TOKENIZER_BYTES = 256 << 20
_SLACK = 1.1


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What a checked folder holds: what it is for, bytes of the tensor files, weights in them, KV cache a token (see
    config_file; 0 where a model keeps none)."""

    task: Task
    weights_bytes: int
    parameters: int
    kv_bytes_per_token: int


def check(folder: Path) -> FolderFacts:
    """Check a model folder. Raises ModelInvalid, UnsupportedFormat or UntrustedCode, naming the file and the remedy."""
    config = read_config(folder)
    recipe = embedding.recipe(folder, config) if embedding.is_embedding(folder, config) else None
    files = _tensor_files(folder)
    tensors: dict[str, safetensors.TensorInfo] = {}
    for file in files:
        if hub.is_snapshot(folder) and not hub.is_inside(file, folder):
            raise ModelInvalid(f"{file} is a link out of the repository's cache; run `hf download` again")
        tensors |= safetensors.read_header(file)
    _check_index(folder, tensors)
    _check_tokenizer(folder)
    weights_bytes = sum(file.stat().st_size for file in files)
    held, asked = _held(config, tensors, weights_bytes), implied_parameters(config)
    if asked > held * _SLACK:
        raise ModelInvalid(
            f"{folder / 'config.json'} describes a model of at least {asked:,} weights, but the safetensors files hold "
            f"{held:,}: the config or the files belong to another model"
        )
    if recipe is None:
        return FolderFacts("generate", weights_bytes, held, kv_bytes_per_token(config))
    return FolderFacts("embed", weights_bytes, held, 0 if recipe.is_encoder else kv_bytes_per_token(config))


def task(folder: Path) -> Task:
    """What the model in a folder is for, by its config.json alone; nothing else is checked, and nothing is raised."""
    try:
        return "embed" if embedding.is_embedding(folder, read_object(folder / "config.json")) else "generate"
    except ModelInvalid:
        return "generate"


def loaded_files(folder: Path) -> list[Path]:
    """The files that make a checked folder the model it is: config, tokenizer, weights."""
    small = [folder / name for name in ("config.json", "tokenizer.json", "tokenizer.model")]
    return [*(path for path in small if path.exists()), *sorted(folder.glob("model*.safetensors"))]


def _tensor_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    if others := sorted(folder.glob("*.safetensors")):
        raise UnsupportedFormat(
            f"{folder} has {others[0].name}, but no model*.safetensors, which is what mlx-lm reads: convert the model "
            "with `mlx_lm.convert`, or name the base model and give this folder as the adapter"
        )
    pickles = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise UnsupportedFormat(
            f"{folder} has only {pickles[0].name}: pickles are not opened, since unpickling runs code; take a version "
            "of the model in safetensors"
        )
    raise ModelInvalid(f"{folder} has no model*.safetensors: the model is not complete; download it again")


def _check_index(folder: Path, tensors: dict[str, safetensors.TensorInfo]) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return
    weight_map = read_object(path, 64 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelInvalid(f"{path}: `weight_map` must give each tensor the name of a file")
    for name in sorted(set(weight_map.values())):
        if "/" in name or "\\" in name or not (folder / name).is_file():
            raise ModelInvalid(f"{path} names {name[:200]!r}, which {folder} does not have; download the model again")
    if missing := sorted(set(weight_map) - set(tensors)):
        raise ModelInvalid(
            f"{path} names the tensor {missing[0][:200]!r}, which no file holds; download the model again"
        )


def _check_tokenizer(folder: Path) -> None:
    if not any(found for pattern in _TOKENIZERS for found in folder.glob(pattern)):
        raise ModelInvalid(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); download the model again")
    path = folder / "tokenizer.json"
    if path.exists():
        _check_tokenizer_json(path)
    settings = folder / "tokenizer_config.json"
    if settings.exists() and read_object(settings, _MAX_TOKENIZER_BYTES).get("auto_map") is not None:
        raise UntrustedCode(
            f"{settings}: `auto_map` asks for a tokenizer with code of its own, which is never run; take a version of "
            "the model with a plain tokenizer.json, without `auto_map`"
        )


def _check_tokenizer_json(path: Path) -> None:
    try:
        if path.stat().st_size > _MAX_TOKENIZER_BYTES:
            raise ModelInvalid(f"{path} has {path.stat().st_size} bytes; at most {_MAX_TOKENIZER_BYTES} are read")
        content = typed.decode(path.read_bytes(), dict[str, msgspec.Raw])
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelInvalid(f"{path} is not valid JSON ({error}); download it again") from error
    if "model" not in content:
        raise ModelInvalid(f"{path} describes no tokenizer: `model` is missing; download it again")


def _held(config: dict[str, Any], tensors: dict[str, safetensors.TensorInfo], weights_bytes: int) -> int:
    """Weights in the files; of formats that pack them in ways of their own (AWQ, GPTQ …), from bytes and bits."""
    settings = config.get("quantization")
    if not isinstance(settings, dict):
        foreign = config.get("quantization_config")
        if isinstance(foreign, dict) and "quant_method" in foreign:
            bits = foreign.get("bits")
            return weights_bytes * 8 // (bits if isinstance(bits, int) and 1 <= bits <= 16 else 2)
        settings = foreign if isinstance(foreign, dict) else {}
    return safetensors.parameters(tensors, lambda module: _group_size(settings, module))


def _group_size(settings: dict[str, Any], module: str) -> int:
    """Weights for each scale of a module; 64 is mlx-lm's default."""
    own = settings.get(module)
    size = own["group_size"] if isinstance(own, dict) and "group_size" in own else settings.get("group_size", 64)
    return size if isinstance(size, int) and 1 <= size <= 1 << 16 else 64
