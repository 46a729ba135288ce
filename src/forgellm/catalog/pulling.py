"""What a pull is about: which files of a repository it fetches, and what its process says. Fetches nothing."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from forgellm.catalog import hub
from forgellm.errors import InvalidRequest, ModelInvalid, UnsupportedFormat

_TEXTS = (".json", ".jinja", ".tiktoken")
_TOKENIZERS = frozenset({"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt"})
_PART = re.compile(r"[0-9]+_[A-Za-z]+", re.ASCII)  # a part of an embedding model, as `1_Pooling`
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHA1 = re.compile(r"[0-9a-f]{40}", re.ASCII)


class File(msgspec.Struct, frozen=True):
    """A file of a repository. `etag` names its blob in the cache: the sha256 of an LFS file (`is_lfs`), else git's
    blob id, which is a sha1. Either is checked."""

    name: str
    size_bytes: int
    etag: str
    is_lfs: bool


class Order(msgspec.Struct, frozen=True):
    """What a pull's process reads from its stdin: one line of JSON."""

    repository: str
    revision: str


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """The hub has answered: which commit, and how much there is to fetch. `done_bytes` are here from before."""

    commit: str
    files: int
    total_bytes: int
    done_bytes: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far it is. `stage` is for people."""

    done_bytes: int
    stage: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The model is whole, and can be loaded from now on."""

    path: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It is over: an error of forgellm.errors as data."""

    code: str
    message: str


News = Planned | Progress | Done | Failed


def parse(name: str, revision: str | None = None) -> Order:
    """`ORG/NAME`, or `ORG/NAME@REVISION`, as an Order. Raises InvalidRequest for what the hub could not have."""
    repository, at, inline = name.partition("@")
    if at and revision is not None and revision != inline:
        raise InvalidRequest("the model names a revision already; leave `revision` out", field="revision")
    wanted = inline if at else hub.MAIN if revision is None else revision
    if not hub.is_repository(repository):
        raise InvalidRequest(
            f"{name[:200]!r} is no repository of the Hugging Face Hub: those are called ORG/NAME", field="model"
        )
    if not hub.is_revision(wanted):
        raise InvalidRequest(f"{wanted[:200]!r} is no revision: give a branch, a tag or a commit", field="revision")
    return Order(repository, wanted)


def model_name(order: Order) -> str:
    """What the model is loaded by once it is here."""
    return order.repository if order.revision == hub.MAIN else f"{order.repository}@{order.revision}"


def wanted(files: Sequence[File], repository: str) -> list[File]:
    """Those of a repository's files that a model on MLX is made of: safetensors, JSON, tokenizer, chat template.

    Never a pickle, never code. Raises UnsupportedFormat if there are no safetensors, and ModelInvalid for a file that
    the hub describes in a way that cannot be checked."""
    by_suffix = [each for each in files if _is_wanted(each.name)]
    named = [each for each in by_suffix if each.name.startswith("model") and each.name.endswith(".safetensors")]
    found = [
        each
        for each in by_suffix
        if not (named and each.name.endswith(".safetensors") and "/" not in each.name) or each in named
    ]
    if not any(each.name.endswith(".safetensors") for each in found):
        raise _no_weights(files, repository)
    for each in found:
        if each.size_bytes < 0 or not (_SHA256 if each.is_lfs else _SHA1).fullmatch(each.etag):
            raise ModelInvalid(f"the hub says of {repository}/{each.name} neither size nor checksum; it is not fetched")
    return sorted(found, key=lambda each: (each.size_bytes, each.name))


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or not name.isprintable() or "\\" in name or any(part.startswith(".") for part in path.parts):
        return False
    if len(path.parts) == 2:
        return _PART.fullmatch(path.parts[0]) is not None and path.name in {"config.json", "model.safetensors"}
    return len(path.parts) == 1 and (path.suffix in _TEXTS or path.suffix == ".safetensors" or path.name in _TOKENIZERS)


def _no_weights(files: Sequence[File], repository: str) -> UnsupportedFormat:
    ggufs = [each.name for each in files if each.name.endswith(".gguf")]
    if ggufs:
        return UnsupportedFormat(
            f"{repository} has GGUF files and no safetensors; fetch the one you want with `hf download {repository} "
            f"{ggufs[0]}`, and load it by its path"
        )
    pickles = [each.name for each in files if each.name.endswith(_PICKLES)]
    if pickles:
        return UnsupportedFormat(
            f"{repository} has only {pickles[0]}: pickles are not fetched, since opening one runs code; take a version "
            "of the model in safetensors, as mlx-community has them"
        )
    return UnsupportedFormat(f"{repository} has no safetensors: there is no model in it that MLX could load")
