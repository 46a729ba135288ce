"""Finds repositories in the local Hugging Face cache. Never goes to the network, never writes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from forgellm.errors import ModelInvalid

MAIN = "main"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{7,64}", re.ASCII)


def cache_root(env: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME, or ~/.cache."""
    if named := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def find(name: str) -> Path | None:
    """Snapshot folder of the repository `name` (`org/name`: its `main` ref, or `org/name@ref`), or None if the cache
    does not hold it.

    Raises ModelInvalid if the cache holds the repository, but not the files of that ref.
    """
    repo, at, ref = name.partition("@")
    revision = ref if at else MAIN
    if not (is_repository(repo) and is_revision(revision)):
        return None
    repository = repository_folder(repo)
    if not repository.is_dir():
        return None
    snapshot = _snapshot(repository, revision)
    if snapshot is None:
        raise ModelInvalid(
            f"the cache holds only a part of {name} ({repository}); run `forgellm pull {name}` or `hf download {repo}`"
        )
    return snapshot


def repository_folder(repo: str) -> Path:
    """Where the cache has, or would have, the repository `org/name`."""
    return cache_root() / ("models--" + repo.replace("/", "--"))


def lock_of(repo: str) -> Path:
    """The lock file for whoever writes or removes that folder."""
    return cache_root() / ".locks" / repository_folder(repo).name / "forgellm.lock"


def is_repository(text: str) -> bool:
    """Whether `text` can be a repository's name, and so a folder of the cache."""
    return _REPOSITORY.fullmatch(text) is not None and "--" not in text and ".." not in text


def is_revision(text: str) -> bool:
    """Whether `text` can be a branch, a tag or a commit, and so a path below `refs`."""
    return _REVISION.fullmatch(text) is not None and ".." not in text and "//" not in text and not text.endswith("/")


def is_commit(text: str) -> bool:
    """Whether `text` can be a commit, and so the name of a snapshot's folder."""
    return _COMMIT.fullmatch(text) is not None


def repositories() -> dict[str, Path]:
    """Every model in the cache that has a snapshot of a ref, by name; of another ref than `main` as `org/name@ref`."""
    found: dict[str, Path] = {}
    try:
        folders = sorted(cache_root().glob("models--*"))
    except OSError:
        return found
    for folder in folders:
        name = folder.name.removeprefix("models--").replace("--", "/")
        for ref in _refs(folder):
            if snapshot := _snapshot(folder, ref):
                found[name if ref == MAIN else f"{name}@{ref}"] = snapshot
    return found


def is_inside(file: Path, snapshot: Path) -> bool:
    """Whether `file`, links followed, is in the repository that `snapshot` belongs to: links to its blobs are how the
    cache is built, links out of it are not."""
    return file.resolve().is_relative_to(snapshot.parent.parent.resolve())


def is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _refs(repository: Path) -> list[str]:
    folder = repository / "refs"
    try:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".tmp")
    except OSError:
        return []


def _snapshot(repository: Path, ref: str) -> Path | None:
    try:
        revision = (repository / "refs" / ref).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if is_commit(revision) and snapshot.is_dir() else None
