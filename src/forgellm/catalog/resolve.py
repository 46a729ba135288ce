"""Turns a name into what to load, and checks it before a process is spawned. Must not download, convert or load.

Order: a config entry, `echo`, `smollm2`, a path (absolute, ./ or ~), a folder or file below `models_dir`, a repository
in the Hugging Face cache.
"""

import difflib
import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from forgellm.catalog import adapters, demo, folder, gguf, gguf_llama, hub, integrity
from forgellm.config import ModelConfig, Settings
from forgellm.errors import InvalidRequest, ModelInvalid, ModelNotFound
from forgellm.messages import ModelSource

_MAX_NAME_BYTES = 1024
_ECHO = "echo"


def resolve(name: str, settings: Settings, *, adapter_path: str | None = None) -> ModelSource:
    """What `name` stands for, checked: files complete, formats known, sizes in bounds, no code of the model's own.

    `name` is a key of settings.models, `echo`, `smollm2`, a path, a name below models_dir, or `org/name` in the Hugging
    Face cache. `adapter_path` is found the same way, and wins over the entry's own. Takes a few milliseconds, and some
    tenths of a second for a large GGUF header seen for the first time. Raises InvalidRequest for a name that cannot be
    one, ModelNotFound with the nearest names, ModelInvalid, UnsupportedFormat or UntrustedCode for a model that cannot
    be served.
    """
    check_name(name, "model_name")
    entry = settings.models.get(name)
    source = _from_entry(name, entry, settings) if entry is not None else _from_files(name, settings)
    adapter = adapter_path if adapter_path is not None else (entry.adapter if entry is not None else None)
    if adapter is None:
        return source
    if source.kind == "echo":
        raise InvalidRequest("the echo engine has no weights to adapt; leave the adapter out", field="adapter_path")
    if source.task == "embed":
        raise InvalidRequest(f"the embedding model {name} takes no adapter; leave it out", field="adapter_path")
    prepared = adapters.prepare(_adapter(adapter, settings), settings.cache_path)
    return replace(source, adapter_path=str(prepared))


def adapter_base(adapter_path: str, settings: Settings | None = None) -> str:
    """Name of the base model of an adapter folder (or of a *.safetensors in one). Raises as resolve does."""
    return adapters.base_model(_adapter(adapter_path, settings or Settings()))


def models_root(settings: Settings) -> Path | None:
    """The folder whose sub-folders are models: `models_dir`, or ~/models if it exists."""
    root = Path(settings.models_dir).expanduser() if settings.models_dir else Path.home() / "models"
    return Path(os.path.abspath(root)) if root.is_dir() else None  # noqa: PTH100 - resolve() would follow links


def check_name(name: str, field: str) -> None:
    """Raise InvalidRequest for a name that no model can have, before anything looks at the disk for it."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} is not valid Unicode: it holds half a surrogate pair", field=field) from error
    if not name.strip():
        raise InvalidRequest(f"{field} is empty", field=field)
    if size > _MAX_NAME_BYTES:
        raise InvalidRequest(f"{field} has {size} bytes; at most {_MAX_NAME_BYTES} are allowed", field=field)
    if "\\" in name or not name.isprintable():
        raise InvalidRequest(f"{field} must not hold backslashes or control characters", field=field)
    if ".." in name.split("/"):
        raise InvalidRequest(f"{field} must not hold `..`; give the absolute path", field=field)


def known_names(settings: Settings) -> list[str]:
    """Names that resolve could be asked for: config entries, the demo model, models_dir, the Hugging Face cache."""
    root = models_root(settings)
    local = [str(found.relative_to(root)) for found in model_files(root)] if root else []
    return list(dict.fromkeys([*settings.models, *settings.aliases, demo.NAME, *local, *hub.repositories()]))


def model_files(root: Path) -> list[Path]:
    """Model folders (with a config.json) and GGUF files below `root`, at most three levels deep."""
    found = [
        path.parent if path.name == "config.json" else path
        for depth in ("*", "*/*", "*/*/*")
        for path in root.glob(depth)
        if path.name == "config.json" or path.suffix == ".gguf"
    ]
    found += [path.parent for path in root.glob("*/*/*/config.json")]
    found = [path for path in found if not (path.parent / "modules.json").is_file()]  # a part, as 1_Pooling is
    return sorted({path for path in found if path != root and path.resolve().is_relative_to(root.resolve())})


def _from_entry(name: str, entry: ModelConfig, settings: Settings) -> ModelSource:
    """The model of a config entry. Its source is resolved again, once: entries do not name entries."""
    check_name(entry.source, f"models.{name}.source")
    source = _from_files(entry.source, msgspec.structs.replace(settings, models={}))
    if entry.options and source.kind != "echo":
        raise ModelInvalid(f"models.{name}.options are knobs of the source `echo`; remove them from the config")
    held = entry.options.get("allocate_bytes", 0)  # what the echo engine has for weights
    if source.kind == "echo" and isinstance(held, int):
        source = replace(source, weights_bytes=held)
    mapped = entry.options.get("map_file")  # what the echo engine reads as one reads weights
    if source.kind == "echo" and isinstance(mapped, str):
        source = replace(source, files=integrity.note([Path(mapped)]))
    return replace(source, name=name, options=dict(entry.options))


def _from_files(name: str, settings: Settings) -> ModelSource:
    if name == _ECHO:
        return ModelSource(name=name, kind="echo")
    if name == demo.NAME:
        path = demo.cached(settings.cache_path)
        return ModelSource(
            name=name,
            kind="demo",
            path=str(path) if path else None,
            weights_bytes=demo.GGUF_BYTES,
            parameters=demo.PARAMETERS,
            kv_bytes_per_token=demo.KV_BYTES_PER_TOKEN,
        )
    found = _path_of(name, "model_name") if is_path(name) else (_below_root(name, settings) or hub.find(name))
    if found is None or not _exists(found) or not (found.is_dir() or found.suffix.lower() == ".gguf"):
        raise _not_found(name, settings)
    return _from_path(name, found)


def _from_path(name: str, found: Path) -> ModelSource:
    if found.is_dir() and not (found / "config.json").exists():
        ggufs = sorted(found.glob("*.gguf"))
        if len(ggufs) > 1:
            raise InvalidRequest(
                f"{found} holds {len(ggufs)} GGUF files; name one of them: {', '.join(g.name for g in ggufs[:5])}",
                field="model_name",
            )
        if ggufs:
            if hub.is_snapshot(found) and not hub.is_inside(ggufs[0], found):
                raise ModelInvalid(f"{ggufs[0]} is a link out of the repository's cache; run `hf download` again")
            found = ggufs[0]
    if found.is_dir():
        facts = folder.check(found)
        return ModelSource(
            name=name,
            kind="folder",
            task=facts.task,
            path=str(found),
            weights_bytes=facts.weights_bytes,
            parameters=facts.parameters,
            kv_bytes_per_token=facts.kv_bytes_per_token,
            files=integrity.note(folder.loaded_files(found)),
        )
    stat = found.stat()
    parameters, kv_bytes_per_token = _gguf_sizes(found, stat.st_size, stat.st_mtime_ns)
    return ModelSource(
        name=name,
        kind="gguf",
        path=str(found),
        weights_bytes=stat.st_size,
        parameters=parameters,
        kv_bytes_per_token=kv_bytes_per_token,
        files=integrity.note([found]),
    )


@lru_cache(maxsize=64)
def _gguf_sizes(path: Path, _size: int, _mtime_ns: int) -> tuple[int, int]:
    """Check a GGUF file: (parameters, KV bytes a token). Remembered while its size and time stay, since a vocabulary
    takes 0.1 s to walk."""
    header = gguf.read_header(path)
    gguf_llama.check(path, header)
    return header.parameters, gguf_llama.kv_bytes_per_token(header)


def is_path(name: str) -> bool:
    """Whether a name says by itself where the files are."""
    return name.startswith(("/", "./", "~"))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a component is too long, or a folder may not be entered
        return False


def _path_of(name: str, field: str) -> Path:
    try:
        return Path(os.path.abspath(Path(name).expanduser()))  # noqa: PTH100 - keeps links: a snapshot is made of them
    except RuntimeError as error:  # ~nobody
        raise InvalidRequest(f"{field}: {error}", field=field) from error


def _below_root(name: str, settings: Settings) -> Path | None:
    """A folder or file below models_dir, or None. Each part must be an entry as it is spelt there: nothing outside is
    touched, and a file system that ignores case does not give one model two names."""
    root = models_root(settings)
    if root is None:
        return None
    found = root
    for part in name.split("/"):
        try:
            if all(entry.name != part for entry in found.iterdir()):
                return None
        except OSError:
            return None
        found = found / part
    if not found.resolve().is_relative_to(root.resolve()):
        raise InvalidRequest(f"{name!r} is a link out of {root}; give the absolute path instead", field="model_name")
    return found


def _adapter(name: str, settings: Settings) -> Path:
    check_name(name, "adapter_path")
    found = _path_of(name, "adapter_path") if is_path(name) else _below_root(name, settings)
    if found is None or not _exists(found):
        raise InvalidRequest(
            f"there is no adapter {name!r}: give a folder, or a *.safetensors in it", field="adapter_path"
        )
    return found


def _not_found(name: str, settings: Settings) -> ModelNotFound:
    names = known_names(settings)
    near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names[:10])}."
    where: Any = models_root(settings) or "models_dir (not set)"
    return ModelNotFound(
        f"there is no model {name[:200]!r}: {hint} A model is an entry of the config, a folder or GGUF file (absolute, "
        f"or below {where}), or a repository in the Hugging Face cache (`hf download ORG/NAME` puts it there)",
        field="model_name",
    )
