"""Finds repositories in the local Hugging Face cache. Never goes to the network, never writes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from forgellm.errors import ModelInvalid

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{7,64}", re.ASCII)


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, or ~/.cache."""
    if named := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def find(name: str) -> Path | None:
    """Snapshot folder of the `main` ref of the repository `name` (`org/name`), or None if the cache does not hold it.

    Raises ModelInvalid if the cache holds the repository, but not the files of that ref.
    """
    if not _REPO.fullmatch(name) or "--" in name or ".." in name:
        return None
    repository = cache_root() / ("models--" + name.replace("/", "--"))
    if not repository.is_dir():
        return None
    snapshot = _main_snapshot(repository)
    if snapshot is None:
        raise ModelInvalid(f"the cache holds only a part of {name} ({repository}); run `hf download {name}`")
    return snapshot


def repositories() -> dict[str, Path]:
    """Every model in the cache that has a snapshot, by name."""
    found: dict[str, Path] = {}
    try:
        folders = sorted(cache_root().glob("models--*"))
    except OSError:
        return found
    for folder in folders:
        name = folder.name.removeprefix("models--").replace("--", "/")
        if snapshot := _main_snapshot(folder):
            found[name] = snapshot
    return found


def is_inside(file: Path, snapshot: Path) -> bool:
    """Whether `file`, links followed, is in the repository that `snapshot` belongs to: links to its blobs are how the
    cache is built, links out of it are not."""
    return file.resolve().is_relative_to(snapshot.parent.parent.resolve())


def is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _main_snapshot(repository: Path) -> Path | None:
    try:
        revision = (repository / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if _REVISION.fullmatch(revision) and snapshot.is_dir() else None
