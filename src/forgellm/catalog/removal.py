"""Removes a model from the Hugging Face cache, whole. Must not touch anything outside that cache."""

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forgellm.catalog import hub
from forgellm.catalog.lock import exclusive
from forgellm.errors import InvalidRequest, ModelInUse, ModelNotFound

LOCK_TIMEOUT_S = 0.5
_TRASH = ".forgellm-removed-"


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal gave back."""

    model: str
    freed_bytes: int


def remove(name: str, user_of: Callable[[Path], str | None]) -> Removed:
    """Remove the repository `org/name`, all its revisions and what a pull left unfinished.

    `user_of(folder)`: the loaded model whose files are below `folder`, if any. Raises InvalidRequest for a name that is
    no repository (a folder, a configured or the demo model), ModelNotFound, ModelInUse, and Unavailable while another
    process writes it. It disappears at once, by a rename; then its bytes are given back."""
    if not hub.is_repository(name):
        raise InvalidRequest(
            f"only repositories of the Hugging Face cache (ORG/NAME, all revisions together) are removed; "
            f"{name[:200]!r} is none: remove a folder or a file of your own by hand",
            field="model",
        )
    folder = hub.repository_folder(name)
    if folder.is_symlink() or not folder.is_dir():
        raise ModelNotFound(f"the Hugging Face cache {folder.parent} does not hold {name}", field="model")
    with exclusive(hub.lock_of(name), LOCK_TIMEOUT_S):
        user = user_of(folder)
        if user is not None:
            raise ModelInUse(f"{user} is loaded from {folder}; unload it first", field="model")
        size_bytes = sum(blob.lstat().st_size for blob in folder.glob("blobs/*"))
        folder.rename(folder.with_name(f"{_TRASH}{uuid.uuid4().hex}"))
    for trash in folder.parent.glob(f"{_TRASH}*"):  # of a removal that was killed, too
        shutil.rmtree(trash, ignore_errors=True)
    return Removed(name, size_bytes)
