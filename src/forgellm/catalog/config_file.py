"""Reads and checks a model's config.json before anything is built from it. Must not import mlx-lm.

mlx-lm builds `num_hidden_layers` Python objects, and imports the module that `model_type` names: both come from the
file, so both are bounded here.
"""

import importlib.util
import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from forgellm.errors import ModelInvalid, UnsupportedFormat, UntrustedCode

_MAX_BYTES = 8 << 20
_MODEL_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)

ALIASES = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}
"""model_type -> module, as mlx_lm.utils.MODEL_REMAPPING has it; a test compares the two."""

ENCODERS = ("bert", "roberta", "xlm-roberta")
"""Model types that mlx-lm does not have, and that worker.bert has: they embed texts, and generate none."""

_BOUNDS = {
    "num_hidden_layers": (1, 2000),
    "hidden_size": (1, 1 << 18),
    "intermediate_size": (1, 1 << 22),
    "num_attention_heads": (1, 1 << 14),
    "num_key_value_heads": (1, 1 << 14),
    "head_dim": (1, 1 << 14),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 40),
    "type_vocab_size": (1, 1 << 16),
    "num_experts": (0, 1 << 14),
    "num_local_experts": (0, 1 << 14),
    "n_routed_experts": (0, 1 << 14),
}
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
_LLAMA_LIKE = ("llama", "qwen2", "qwen3")
_LLAMA_NEEDS = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
_LLAMA_MAY_HAVE = ("num_key_value_heads", "head_dim")


def read_object(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises ModelInvalid, naming the file and what is wrong with it."""
    content = _read(path, max_bytes)
    if not isinstance(content, dict):
        raise ModelInvalid(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def read_array(path: Path) -> list[Any]:
    """A JSON array, as read_object reads objects."""
    content = _read(path, _MAX_BYTES)
    if not isinstance(content, list):
        raise ModelInvalid(f"{path} must hold a JSON array, not {type(content).__name__}")
    return content


def _read(path: Path, max_bytes: int) -> Any:
    try:
        if path.stat().st_size > max_bytes:
            raise ModelInvalid(f"{path} has {path.stat().st_size} bytes; at most {max_bytes} are read")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelInvalid(f"{path} cannot be read ({error.strerror}); a model folder needs it") from error
    except RecursionError as error:
        raise ModelInvalid(f"{path} is nested too deeply") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ModelInvalid(f"{path} is not valid JSON: {str(error)[:200]}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, checked: a model type that mlx-lm has, no code of its own, sizes within bounds.

    Raises ModelInvalid, UnsupportedFormat or UntrustedCode, naming the file, the key and the remedy.
    """
    path = folder / "config.json"
    config = read_object(path)
    _check_code(path, config)
    _check_model_type(path, config)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            _check_bounds(path, section)
    if _module(config) in _LLAMA_LIKE:
        _check_llama(path, config)
    return config


def implied_parameters(config: dict[str, Any]) -> int:
    """A lower bound of the number of weights that the sizes in the config ask for.

    Exact to a few per cent for the llama shape (attention: hidden x head_dim x (2 heads + 2 kv heads); the MLP's three
    matrices) and for encoders (four matrices of attention, two of the MLP), else the embedding and one vector a layer.
    """
    if _module(config) in _LLAMA_LIKE:
        hidden, layers, heads = (config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or hidden // heads
        per_layer = 2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * config["intermediate_size"]
        return int(config["vocab_size"] * hidden + layers * per_layer)
    sizes = _of_text(config)
    hidden, layers, vocab = (sizes.get(key) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    if isinstance(hidden, int) and isinstance(layers, int) and isinstance(vocab, int):
        if _module(config) in ENCODERS:
            return (vocab + layers * (4 * hidden + 2 * int(config["intermediate_size"]))) * hidden
        return (vocab + layers) * hidden
    return 0


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """What one token adds to the KV cache in half precision: keys and values of 2 bytes, of each kv head of each layer.

    An upper bound for models with sliding windows or compressed attention; 0 if the sizes are not plain numbers.
    """
    sizes = _of_text(config)
    layers, heads, hidden = (sizes.get(key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(hidden, int)):
        return 0
    kv_heads, head_dim = sizes.get("num_key_value_heads") or heads, sizes.get("head_dim") or hidden // heads
    if not (isinstance(kv_heads, int) and isinstance(head_dim, int)):
        return 0
    return 2 * 2 * layers * kv_heads * head_dim


def _module(config: dict[str, Any]) -> str:
    kind = str(config["model_type"])
    return ALIASES.get(kind, kind)


def _check_code(path: Path, config: dict[str, Any]) -> None:
    """`model_file` is run by mlx-lm when it is let; `auto_map` alone is not: mlx-lm builds the model from its own code,
    and many harmless repositories have it. Its AutoTokenizer entry, though, is read by transformers."""
    if config.get("model_file") is not None:
        raise UntrustedCode(f"{path}: `model_file` asks to run code from the model's folder, which is never done")
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and "AutoTokenizer" in auto_map:
        raise UntrustedCode(f"{path}: `auto_map` asks for a tokenizer with code of its own, which is never run")


def _check_model_type(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelInvalid(f"{path}: `model_type` is missing or not a string; it names the architecture")
    if kind not in ENCODERS and not (_MODEL_TYPE.fullmatch(kind) and _is_known(ALIASES.get(kind, kind))):
        if config.get("auto_map") is not None:
            raise UntrustedCode(
                f"{path}: mlx-lm has no model type {kind[:64]!r}, and the code in the folder is never run"
            )
        raise UnsupportedFormat(f"{path}: mlx-lm has no model type {kind[:64]!r}; update mlx-lm or take another model")


@lru_cache(maxsize=256)
def _is_known(module: str) -> bool:
    """Whether mlx_lm.models has a module of that name that defines a Model; its text decides, nothing is imported."""
    spec = importlib.util.find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return True  # no mlx-lm here: the worker, which has it, decides
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / f"{module}.py"
    try:
        text = path.read_text("utf-8")
    except OSError:
        return False
    return path.parent.name == "models" and re.search(r"^class Model\b", text, re.MULTILINE) is not None


def _check_bounds(path: Path, sizes: dict[str, Any]) -> None:
    for key, (low, high) in _BOUNDS.items():
        for number in _values(sizes, key):
            if not (type(number) is int and low <= number <= high):
                raise ModelInvalid(f"{path}: `{key}` is {str(number)[:50]}; it must be a whole number, {low} to {high}")
    for key in _POSITIVE:
        for number in _values(sizes, key):
            if not (type(number) in (int, float) and 0 < number < math.inf):
                raise ModelInvalid(f"{path}: `{key}` is {str(number)[:50]}; it must be a positive number")


def _values(sizes: dict[str, Any], key: str) -> list[Any]:
    """What is given for a key; some architectures have one value a layer."""
    value = sizes.get(key)
    return [number for number in (value if isinstance(value, list) else [value]) if number is not None]


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the config with the sizes of the text model."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _check_llama(path: Path, config: dict[str, Any]) -> None:
    """Of the llama shape every size must be one number: the count of weights is made of them."""
    for key in (*_LLAMA_NEEDS, *_LLAMA_MAY_HAVE):
        value = config.get(key)
        if value is None and key in _LLAMA_NEEDS:
            raise ModelInvalid(f"{path}: `{key}` is missing")
        if isinstance(value, list):
            raise ModelInvalid(f"{path}: `{key}` is a list; it must be a whole number")
