"""Which machines this one is paired with, and the code that pairs one more. Files only; it speaks to nobody.

The list holds a key for each pair, so it is its owner's alone; of a pairing code it holds a hash.
"""

import base64
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from forgellm import typed
from forgellm.control.certificate import fingerprint
from forgellm.errors import ConfigError, InvalidRequest, NotFound, SupervisorUnavailable
from forgellm.private_file import locked, replace

Role = Literal["client", "daemon"]

CODE_PREFIX = "pair-"
CODE_LIFETIME_S = 600.0
CODE_TRIES = 5
SECRET_BYTES = 16
FINGERPRINT_BYTES = 32
KEY_BYTES = 32

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")]


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A paired machine. `role` client: it may use the daemon here; daemon: it is used from here, at `address`.

    `certificate` is DER, `key` 32 random bytes that only the two know; `created` is unix time, for people to read.
    """

    id: Name
    name: Name
    role: Role
    address: str | None = None
    certificate: bytes
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    created: float

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.certificate)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    machines: list[Machine]


class _Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pairing code without itself. Both clocks must agree that it is young: one may be set, the other begins anew."""

    sha256: str
    wall_s: float
    monotonic_s: float
    tries: int

    def is_valid(self) -> bool:
        ages = (time.time() - self.wall_s, time.monotonic() - self.monotonic_s)
        return all(0 <= age <= CODE_LIFETIME_S for age in ages)


def file_of(folder: Path) -> Path:
    return folder / "machines.json"


def read(folder: Path) -> list[Machine]:
    """The paired machines; none if there is no file. Raises ConfigError for one that cannot be used as it is."""
    path = file_of(folder)
    try:
        with path.open("rb") as file:
            mode, raw = os.fstat(file.fileno()).st_mode, file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", field="machines_dir") from error
    if mode & 0o077:
        raise ConfigError(f"others may read the keys in {path}; remove it, and pair again", field="machines_dir")
    try:
        return typed.decode(raw, _File).machines
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is broken ({error}); remove it, and pair again", field="machines_dir") from error


def daemon_at(folder: Path, address: str) -> Machine:
    """The daemon that was paired as `address`. Raises SupervisorUnavailable with the remedy."""
    for machine in read(folder):
        if machine.role == "daemon" and machine.address == address:
            return machine
    raise SupervisorUnavailable(
        f"this machine is not paired with a daemon at {address}: run `forgellm keys pair` there, "
        f"and here `forgellm pair {address}` with the code that it prints"
    )


def new_machine(name: str, role: Role, certificate: bytes, key: bytes, address: str | None = None) -> Machine:
    return Machine(
        id=f"m{secrets.token_hex(4)}",
        name=name,
        role=role,
        address=address,
        certificate=certificate,
        key=key,
        created=round(time.time(), 3),
    )


def add(folder: Path, machine: Machine) -> None:
    """Put it on the list, in place of what the same certificate or the same address stood for in that role."""
    with locked(file_of(folder), "the list of machines"):
        _write(folder, [*(each for each in read(folder) if not _is_replaced(each, machine)), machine])


def remove(folder: Path, id_or_name: str) -> Machine:
    """Take one off the list; its entry. Raises NotFound, InvalidRequest for a name that several have."""
    with locked(file_of(folder), "the list of machines"):
        machines = read(folder)
        found = [each for each in machines if id_or_name in {each.id, each.name}]
        if not found:
            raise NotFound(f"no key and no machine has the id or name {id_or_name}; `forgellm keys list` shows them")
        if len(found) > 1:
            raise InvalidRequest(f"{len(found)} machines are called {id_or_name}; give the id of one")
        _write(folder, [each for each in machines if each is not found[0]])
    return found[0]


def _is_replaced(old: Machine, new: Machine) -> bool:
    is_same = old.certificate == new.certificate if new.role == "client" else old.address == new.address
    return old.role == new.role and is_same


def _write(folder: Path, machines: Iterable[Machine]) -> None:
    replace(file_of(folder), msgspec.json.format(msgspec.json.encode(_File(1, list(machines))), indent=2) + b"\n")


# Pairing codes -------------------------------------------------------------------------------------------------------


def new_code(folder: Path, own_fingerprint: bytes) -> str:
    """A code for one machine, within ten minutes; an older one is void. It says whom to trust, and is the proof.

    The daemon's fingerprint, then 128 random bits that are kept as a hash."""
    secret = secrets.token_bytes(SECRET_BYTES)
    code = _Code(hashlib.sha256(secret).hexdigest(), time.time(), time.monotonic(), CODE_TRIES)
    with locked(_code_file(folder), "the pairing code"):
        replace(_code_file(folder), msgspec.json.encode(code))
    return CODE_PREFIX + base64.urlsafe_b64encode(own_fingerprint + secret).decode()


def parse_code(text: str) -> tuple[bytes, bytes]:
    """A code's fingerprint and secret. Raises InvalidRequest, and does not repeat it."""
    try:
        if text.startswith(CODE_PREFIX):
            raw = base64.b64decode(text.removeprefix(CODE_PREFIX), altchars=b"-_", validate=True)
            if len(raw) == FINGERPRINT_BYTES + SECRET_BYTES:
                return raw[:FINGERPRINT_BYTES], raw[FINGERPRINT_BYTES:]
    except ValueError:
        pass  # as any other text that is no code
    raise InvalidRequest("this is no pairing code; `forgellm keys pair` on the daemon's machine prints one")


def redeem(folder: Path, secret: bytes) -> None:
    """Use the code up. Raises InvalidRequest; after some wrong ones the right one is void too."""
    path = _code_file(folder)
    if path.exists():
        with locked(path, "the pairing code"):
            code = _read_code(path)
            if code is not None:
                is_right = hmac.compare_digest(code.sha256, hashlib.sha256(secret).hexdigest())
                if is_right or code.tries <= 1:
                    path.unlink()
                else:
                    replace(path, msgspec.json.encode(msgspec.structs.replace(code, tries=code.tries - 1)))
                if is_right:
                    return
    raise InvalidRequest(
        "the daemon does not take this pairing code: it is wrong, used or older than ten minutes, or others tried "
        f"wrong ones {CODE_TRIES} times; `forgellm keys pair` there prints a new one"
    )


def _code_file(folder: Path) -> Path:
    return folder / "pairing.json"


def _read_code(path: Path) -> _Code | None:
    """The code that is valid now; one that is not any more is removed."""
    try:
        code = typed.decode(path.read_bytes(), _Code)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        code = None
    if code is not None and code.is_valid():
        return code
    path.unlink(missing_ok=True)
    return None
