"""API keys at rest: one JSON file of who may do what, with a hash where the key would be. Never holds or prints a key.

Every change replaces the whole file, under a lock and at once, so that a reader sees the old one or the new one.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from forgellm import typed
from forgellm.errors import ConfigError, InvalidRequest, NotFound
from forgellm.messages import LoadPolicy
from forgellm.private_file import locked, replace

Scope = Literal["infer", "manage", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

SHAPE = re.compile(r"fk-[A-Za-z0-9_-]{43}")
"""What a key looks like: 256 random bits in base64, behind a prefix that scanners of secrets can look for."""

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\s\x00-\x1f\x7f]+$")]


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key, without itself. `models` None: any model; `rate_per_min` and `concurrency` None: no limit.

    `load_policy`: whether what it asks may have a model loaded; None: as the settings say. `created` is unix time, for
    people to read.
    """

    id: Name
    name: Name
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    models: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    rate_per_min: Annotated[int, Meta(ge=1)] | None = None
    concurrency: Annotated[int, Meta(ge=1)] | None = None
    load_policy: LoadPolicy | None = None
    created: float


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    keys: list[Key]


class Ring:
    """The keys that count at one moment. Immutable."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        self._by_hash = {key.sha256: key for key in keys}

    def find(self, secret: str) -> Key | None:
        """The key that `secret` is.

        How long a look-up takes says something about the hash of what was sent, which the sender knows, and nothing
        about a key: to try a hash one byte after the other one would have to invert SHA-256, and a guess of 256 random
        bits has no better and worse tries. So no slow hash is needed either. The comparison is there all the same, so
        that this does not hang on how a dict compares.
        """
        found = hash_of(secret)
        key = self._by_hash.get(found)
        return key if key is not None and hmac.compare_digest(key.sha256, found) else None


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def read(path: Path) -> Ring | None:
    """The keys in the file, None if there is no such file. Raises ConfigError for one that cannot be used as it is."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the keys file {path}: {error.strerror}", field="keys_file") from error
    if mode & _WRITABLE_BY_OTHERS:
        raise ConfigError(f"others may write the keys file {path}; run chmod 600 on it", field="keys_file")
    try:
        keys = typed.decode(raw, _File).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no keys file ({error}){_REMEDY}", field="keys_file") from error
    for values in ([key.id for key in keys], [key.name for key in keys], [key.sha256 for key in keys]):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"{path} is no keys file ({twice} is in it twice){_REMEDY}", field="keys_file")
    return Ring(keys)


_REMEDY = "; put back a copy of it, or remove it and create new keys"


def create(
    path: Path,
    *,
    name: str | None = None,
    scopes: Sequence[Scope] = ("infer",),
    models: Sequence[str] | None = None,
    rate_per_min: int | None = None,
    concurrency: int | None = None,
    load_policy: LoadPolicy | None = None,
) -> tuple[Key, str]:
    """Add a new random key to the file: its entry, and the key itself, which is kept nowhere.

    Raises InvalidRequest for values that no key can have and for a name that is taken, ConfigError for a file that
    cannot be used, Unavailable for one that cannot be written or stays locked.
    """
    secret = f"fk-{secrets.token_urlsafe(32)}"
    key_id = f"k{secrets.token_hex(4)}"
    key = Key(
        id=key_id,
        name=key_id if name is None else name,
        sha256=hash_of(secret),
        scopes=tuple(dict.fromkeys(scopes)),
        models=None if models is None else tuple(models),
        rate_per_min=rate_per_min,
        concurrency=concurrency,
        load_policy=load_policy,
        created=round(time.time(), 3),
    )
    try:
        typed.convert(msgspec.to_builtins(key), Key)  # a Struct checks what it decodes, not what it is made of
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"no key can be like this: {error}") from error
    with locked(path, "the keys file"):
        ring = read(path)
        keys = ring.keys if ring else ()
        if any(key.name in {each.id, each.name} for each in keys):
            raise InvalidRequest(f"there is a key {key.name} already; choose another name or revoke it", field="name")
        _write(path, [*keys, key])
    return key, secret


def revoke(path: Path, id_or_name: str) -> Key:
    """Take a key out of the file; its entry. A file without keys stays, and lets nobody in.

    Raises NotFound, InvalidRequest if it is given the key itself, and for the file what create() raises.
    """
    if SHAPE.search(id_or_name):
        raise InvalidRequest("give the id or the name of the key, not the key itself: others can see commands")
    with locked(path, "the keys file"):
        ring = read(path)
        keys = ring.keys if ring else ()
        found = next((key for key in keys if id_or_name in {key.id, key.name}), None)
        if found is None:
            raise NotFound(f"no key has the id or name {id_or_name}; `forgellm keys list` shows them")
        _write(path, [key for key in keys if key is not found])
    return found


def _write(path: Path, keys: list[Key]) -> None:
    replace(path, msgspec.json.format(msgspec.json.encode(_File(1, keys)), indent=2) + b"\n")
