"""Lists what could be loaded by name, for people to choose from. Reads names and sizes only, and checks nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from forgellm.catalog import demo, folder, hub, integrity
from forgellm.catalog.resolve import is_path, model_files, models_root
from forgellm.config import Settings
from forgellm.messages import Integrity, Task

_SOURCES: dict[str, Integrity] = {"echo": "none", demo.NAME: "verified"}
_TRAINED: tuple[Literal["cpt", "ift"], ...] = ("cpt", "ift")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """Something that can be loaded. `id` is what to load it by: as the model, or as the adapter if it holds only one.

    kind: "base", or "cpt" and "ift" for what continued pre-training and instruction tuning put into those folders of
    models_dir. `path` is absolute, None for what has no files yet. `size_bytes` is the sum of the tensor files, 0 when
    unknown. source: where it was found. `task`: what it is for, by its config.json; "generate" where there is none.
    `aliases`: other names for it. `integrity`: whether its weights are compared with a known sha256 when it is loaded.
    """

    id: str
    name: str
    path: str | None
    kind: Literal["base", "cpt", "ift"]
    size_bytes: int
    source: Literal["config", "demo", "models_dir", "huggingface"]
    task: Task = "generate"
    aliases: tuple[str, ...] = ()
    integrity: Integrity = "unverified"


def entries(settings: Settings) -> list[CatalogEntry]:
    """Config entries, the demo model, models_dir and the Hugging Face cache, by name; an earlier one hides a later one
    of the same id, as in resolve."""
    found = [*_configured(settings), _demo(settings), *_local(settings), *_cached()]
    by_id: dict[str, CatalogEntry] = {}
    for entry in found:
        by_id.setdefault(entry.id, entry)
    found = [replace(entry, aliases=settings.aliases_of(entry.id)) for entry in by_id.values()]
    return sorted(found, key=lambda entry: (entry.name.lower(), entry.id))


def _configured(settings: Settings) -> Iterator[CatalogEntry]:
    for name, config in settings.models.items():
        path = Path(config.source).expanduser().absolute() if is_path(config.source) else None
        yield CatalogEntry(
            id=name,
            name=name,
            path=str(path) if path else None,
            kind="base",
            size_bytes=_size(path) if path else 0,
            source="config",
            task=folder.task(path) if path else "generate",
            integrity=_SOURCES.get(config.source, "unverified"),
        )


def _demo(settings: Settings) -> CatalogEntry:
    path = demo.cached(settings.cache_path)
    return CatalogEntry(
        id=demo.NAME,
        name=demo.NAME,
        path=str(path) if path else None,
        kind="base",
        size_bytes=demo.GGUF_BYTES,
        source="demo",
        integrity="verified",
    )


def _local(settings: Settings) -> Iterator[CatalogEntry]:
    root = models_root(settings)
    if root is None:
        return
    inside = root.resolve()
    trained = [
        path
        for kind in _TRAINED
        for path in sorted(root.glob(f"{kind}/*"))
        if path.is_dir() and path.resolve().is_relative_to(inside)
    ]
    for path in dict.fromkeys([*model_files(root), *trained]):
        name = str(path.relative_to(root))
        kind = next((kind for kind in _TRAINED if path.parent == root / kind), None)
        yield CatalogEntry(
            id=name,
            name=path.name if kind else name,
            path=str(path),
            kind=kind or "base",
            size_bytes=_size(path),
            source="models_dir",
            task=folder.task(path),
        )


def _cached() -> Iterator[CatalogEntry]:
    for name, path in hub.repositories().items():
        yield CatalogEntry(
            id=name,
            name=name,
            path=str(path),
            kind="base",
            size_bytes=_size(path),
            source="huggingface",
            task=folder.task(path),
            integrity=integrity.foresee(integrity.note([*folder.loaded_files(path), *path.glob("*.gguf")])),
        )


def _size(path: Path) -> int:
    """Bytes of a GGUF file, or of the tensor files in a folder; 0 if it cannot be read."""
    try:
        if path.is_file():
            return path.stat().st_size
        files = [file for pattern in ("*.safetensors", "*.gguf") for file in path.glob(pattern)]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0
