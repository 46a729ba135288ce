"""LoRA adapters: finds, checks and prepares the folder that mlx_lm loads.

Must not let an adapter that is not whole pass: the base model would be loaded in silence.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from forgellm.catalog import safetensors
from forgellm.catalog.config_file import read_object
from forgellm.catalog.lock import exclusive
from forgellm.errors import InvalidRequest, ModelInvalid, UnsupportedFormat

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
_FIELD = "adapter_path"
_KINDS = ("lora", "dora", "full")
_BASE_KEYS = ("model", "base_model", "model_name")


def prepare(path: Path, cache_dir: Path) -> Path:
    """Folder that mlx_lm can load as an adapter, from an adapter folder or a *.safetensors in one.

    A checkpoint (`0000100_adapters.safetensors`) gets a small folder in the cache, with links to it and to its config.
    Raises InvalidRequest if there is nothing of that name, ModelInvalid or UnsupportedFormat for a bad adapter.
    """
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise ModelInvalid(_no_weights(path))
        folder, weights = path, path / WEIGHTS
    elif path.is_file() and path.suffix == ".safetensors":
        folder, weights = path.parent, path
    else:
        raise InvalidRequest(f"there is no adapter folder or *.safetensors file {path}", field=_FIELD)
    _check_config(folder)
    safetensors.read_header(weights)
    return folder if weights.name == WEIGHTS else _linked(folder, weights, cache_dir)


def base_model(path: Path) -> str:
    """Name of the model that an adapter was trained on: `model` in adapter_config.json, or else the newest CPT_*.json.

    Raises InvalidRequest if nothing names it, ModelInvalid if the config cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    config = _check_config(folder)
    logs = sorted(folder.glob("CPT_*.json"), key=lambda log: log.stat().st_mtime_ns, reverse=True)
    for source in (config, *(_log_settings(log) for log in logs[:1])):
        for key in _BASE_KEYS:
            if isinstance(name := source.get(key), str) and name:
                return name
    raise InvalidRequest(
        f"{folder / CONFIG} does not name the base model (`model`); give model_name with the adapter",
        field="model_name",
    )


def _log_settings(log: Path) -> dict[str, Any]:
    """The settings of a training log, which older versions nest under `config`."""
    content = read_object(log, 256 << 20)
    nested = content.get("config")
    return {**content, **nested} if isinstance(nested, dict) else content


def _no_weights(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    if found:
        return f"{folder} has no {WEIGHTS}; name one of its files as the adapter: {', '.join(found[:5])}"
    return f"{folder} has no {WEIGHTS}: it is not an adapter that mlx_lm.lora wrote"


def _check_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelInvalid(
            f"{folder} has no {CONFIG}, so the adapter cannot be applied; copy it from the training folder"
        )
    config = read_object(path)
    if "peft_type" in config:
        raise UnsupportedFormat(f"{path} is a PEFT adapter; mlx-lm applies those that mlx_lm.lora wrote")
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise UnsupportedFormat(
            f"{path}: `fine_tune_type` is {str(kind)[:50]!r}; it must be one of {', '.join(_KINDS)}"
        )
    if kind != "full":
        _check_lora(path, config)
    return config


def _check_lora(path: Path, config: dict[str, Any]) -> None:
    layers, lora = config.get("num_layers"), config.get("lora_parameters")
    if not (type(layers) is int and -1 <= layers <= 2000):
        raise ModelInvalid(f"{path}: `num_layers` is {str(layers)[:50]}; it must be a whole number, -1 to 2000")
    rank = lora.get("rank") if isinstance(lora, dict) else None
    if not (type(rank) is int and 1 <= rank <= 1 << 14):
        raise ModelInvalid(f"{path}: `lora_parameters.rank` is {str(rank)[:50]}; it must be a whole number from 1")


def _linked(folder: Path, weights: Path, cache_dir: Path) -> Path:
    """A folder whose adapters.safetensors is the checkpoint. The same checkpoint always gets the same folder, whole."""
    source = weights.resolve()
    key = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    target = cache_dir.expanduser() / "adapters" / f"{weights.stem}-{key}"
    links = {CONFIG: (folder / CONFIG).resolve(), WEIGHTS: source}
    if not all(_points_to(target / name, file) for name, file in links.items()):
        with exclusive(target.with_name(target.name + ".lock"), timeout_s=10.0):
            target.mkdir(exist_ok=True)
            for name, file in links.items():
                part = target / f".{name}.part"
                part.unlink(missing_ok=True)
                part.symlink_to(file)
                part.replace(target / name)
    return target


def _points_to(link: Path, file: Path) -> bool:
    try:
        return link.readlink() == file
    except OSError:
        return False
