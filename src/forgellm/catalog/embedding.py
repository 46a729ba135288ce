"""Which folders are embedding models, and how each makes a vector of a text: the layout of sentence-transformers.

Must not load or run anything, and never guesses how to pool: the wrong way gives vectors that look right and are not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgellm.catalog.config_file import ENCODERS, read_array, read_object
from forgellm.errors import ModelInvalid, UnsupportedFormat

Pooling = Literal["mean", "cls", "max", "lasttoken"]

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "lasttoken"}
_OLD_KEYS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_DECODERS = ("qwen3",)
_ACTIVATIONS = ("gelu", "relu")
_NEEDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
_NO_LIMIT = 1 << 30  # of a decoder whose config states none
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the tokens' states become one vector. `context_length` in tokens, the tokenizer's own special ones included;
    `first_position` is the row of the position table that the first token has."""

    is_encoder: bool
    pooling: Pooling
    is_normalised: bool
    context_length: int
    first_position: int = 0


def is_embedding(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a model folder with this config.json is for embedding: by its architecture, or a list of modules."""
    return config.get("model_type") in ENCODERS or (folder / "modules.json").is_file()


def recipe(folder: Path, config: Mapping[str, Any]) -> Recipe:
    """How the embedding model in `folder` is to be used; `config` has been through read_config.

    Raises ModelInvalid or UnsupportedFormat, naming the file, the key and the remedy."""
    kind = config["model_type"]
    if kind not in (*ENCODERS, *_DECODERS):
        known = ", ".join((*ENCODERS, *_DECODERS))
        raise UnsupportedFormat(
            f"{folder} is an embedding model of the type {kind!r}, which is not supported; these are: {known}"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UnsupportedFormat(
            f"{folder} has no tokenizer.json, which embedding models are read with: take a version of the model that "
            "has it, or save one with transformers (`save_pretrained` of its fast tokenizer)"
        )
    pooling_folder, is_normalised = _modules(folder)
    pooling = _pooling(pooling_folder / "config.json")
    first = _check_encoder(folder / "config.json", config) if kind in ENCODERS else 0
    if kind in _DECODERS and pooling != "lasttoken":
        raise UnsupportedFormat(
            f"{folder} pools by {pooling}; of a {kind} model only the last token's state is supported (lasttoken)"
        )
    stated = config.get("max_position_embeddings")
    limits = [stated - first if type(stated) is int else _NO_LIMIT, *_longest(folder)]
    return Recipe(kind in ENCODERS, pooling, is_normalised, min(limits), first)


def _modules(folder: Path) -> tuple[Path, bool]:
    """(folder of the pooling's config, whether vectors are normalised), from modules.json if there is one."""
    path = folder / "modules.json"
    if not path.is_file():
        return folder / "1_Pooling", False
    kinds: dict[str, str] = {}
    for module in read_array(path):
        kind, at = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(at, str) or not (at == "" or _FOLDER.fullmatch(at)):
            raise ModelInvalid(f"{path}: each module must have a `type` and a `path`, the name of a sub-folder")
        kinds[kind.rpartition(".")[2]] = at
    if others := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise UnsupportedFormat(
            f"{path} asks for the module {others[0][:64]!r}; Transformer, Pooling and Normalize are supported: take "
            "another model"
        )
    if kinds.get("Transformer") != "" or "Pooling" not in kinds:
        raise UnsupportedFormat(
            f'{path} must name a Transformer at the path "" (the folder itself) and a Pooling module'
        )
    return folder / kinds["Pooling"], "Normalize" in kinds


def _pooling(path: Path) -> Pooling:
    if not path.is_file():
        raise UnsupportedFormat(
            f"{path} is missing: it says how the tokens of a text become one vector (mean, cls, lasttoken), which is "
            "not to be guessed; copy it from the repository that the model was first published in"
        )
    content = read_object(path)
    named = content.get("pooling_mode")  # as sentence-transformers writes it since version 5
    asked = [named] if isinstance(named, str) else [key for key, value in content.items() if value is True]
    asked = [mode for mode in asked if isinstance(named, str) or mode.startswith("pooling_mode_")]
    found = [_POOLINGS.get(mode) or _OLD_KEYS.get(mode) for mode in asked]
    if len(found) != 1 or found[0] is None:
        raise UnsupportedFormat(
            f"{path} asks for the pooling {', '.join(asked)[:200] or 'none'}; exactly one of {', '.join(_POOLINGS)} is "
            "supported: take another model"
        )
    return found[0]


def _longest(folder: Path) -> list[int]:
    """The limit that sentence-transformers keeps, if it is stated."""
    path = folder / "sentence_bert_config.json"
    stated = read_object(path).get("max_seq_length") if path.is_file() else None
    if stated is not None and not (type(stated) is int and 1 <= stated <= 1 << 24):
        raise ModelInvalid(f"{path}: `max_seq_length` is {str(stated)[:50]}; it must be a whole number, 1 or more")
    return [] if stated is None else [stated]


def _check_encoder(path: Path, config: Mapping[str, Any]) -> int:
    """Check what worker.bert is built from; the row of the first position."""
    for key in _NEEDS:
        if type(config.get(key)) is not int:  # its bounds were checked
            raise ModelInvalid(f"{path}: `{key}` is missing, or not a whole number")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ModelInvalid(
            f"{path}: `hidden_size` {config['hidden_size']} is not a multiple of `num_attention_heads` "
            f"{config['num_attention_heads']}"
        )
    if (activation := config.get("hidden_act", "gelu")) not in _ACTIVATIONS:
        raise UnsupportedFormat(
            f"{path}: `hidden_act` {str(activation)[:50]!r} is not one of {', '.join(_ACTIVATIONS)}"
        )
    if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
        raise UnsupportedFormat(f"{path}: `position_embedding_type` {str(kind)[:50]!r} is not supported, only absolute")
    if config["model_type"] == "bert":
        return 0
    pad = config.get("pad_token_id", 1)  # RoBERTa counts positions from the one after the padding's
    if type(pad) is not int or not 0 <= pad < config["max_position_embeddings"] - 1:
        raise ModelInvalid(
            f"{path}: `pad_token_id` is {str(pad)[:50]}; it must be a position, and leave room for others"
        )
    return pad + 1
