"""How two machines come to know each other: one call over TLS, by whoever has the code. Decides nothing about models.

The code tells the client the daemon's fingerprint, so it speaks to nobody in between; its secret tells the daemon that
whoever speaks may be let in. So the secret may travel, and nothing that travels or is stored can be used again.
"""

import logging
import secrets
import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.msgpack import Decoder

from forgellm.control import certificate, machines, tls
from forgellm.control.frames import HANDSHAKE_LIMIT_BYTES, BadFrame, Failed
from forgellm.control.link import Link, LinkLost
from forgellm.control.machines import KEY_BYTES, Machine, Name
from forgellm.control.tls import TlsAddress
from forgellm.errors import ForgeLLMError, InvalidRequest, SupervisorUnavailable, Unavailable

TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class Pair(msgspec.Struct, frozen=True, tag="pair"):
    """From the client: who it is, the certificate (DER) that it will come with, and the code's secret."""

    name: Name
    certificate: Annotated[bytes, Meta(min_length=64, max_length=2048)]
    secret: bytes


class Paired(msgspec.Struct, frozen=True, tag="paired"):
    """From the daemon: its name, and the key that only the two will know."""

    name: Name
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


PAIR = Decoder(Pair)
PAIRED: "Decoder[Paired | Failed]" = Decoder(Paired | Failed)


def pair(address: TlsAddress, code: str, folder: Path) -> Machine:
    """Make this machine known to the daemon at `address`, and the daemon to this machine; the daemon's entry.

    Raises InvalidRequest for a code that is none or is not taken, SupervisorUnavailable."""
    expected, secret = machines.parse_code(code)
    own = certificate.own(folder)
    try:
        sock = tls.connect(address, tls.pairing_context(), expected)
    except SupervisorUnavailable as error:
        if "another certificate" not in error.message:
            raise
        raise SupervisorUnavailable(
            f"whoever answers at {address} is not the daemon that made this code: it is another daemon's, or somebody "
            "is in between; nothing was told to it"
        ) from error
    link = Link(sock, f"the daemon at {address}")
    try:
        deadline = time.monotonic() + TIMEOUT_S
        link.send(Pair(certificate.machine_name(), own.der, secret), deadline)
        answer = link.receive(PAIRED, deadline, HANDSHAKE_LIMIT_BYTES)
        if isinstance(answer, Failed):
            raise answer.error()
        pinned = sock.getpeercert(binary_form=True) or b""
    except (LinkLost, BadFrame) as error:
        raise SupervisorUnavailable(f"pairing failed: {error}; make a new code and try again") from error
    finally:
        link.close()
    machine = machines.new_machine(answer.name, "daemon", pinned, answer.key, address.place)
    machines.add(folder, machine)
    return machine


def accept(link: Link, folder: Path, deadline: float) -> None:
    """The daemon's side. Raises BadFrame, LinkLost, or the error that the client was told."""
    asked = link.receive(PAIR, deadline, HANDSHAKE_LIMIT_BYTES)
    if not tls.is_certificate(asked.certificate):
        raise BadFrame("a certificate that is none")
    try:
        machines.redeem(folder, asked.secret)
        key = secrets.token_bytes(KEY_BYTES)
        machine = machines.new_machine(asked.name, "client", asked.certificate, key)
        machines.add(folder, machine)
    except ForgeLLMError as error:
        # Only what a stranger may know: other errors name our files.
        own = error if isinstance(error, InvalidRequest) else Unavailable("the daemon cannot pair; its log says why")
        link.offer(Failed.of(own), deadline)
        raise
    log.info("paired with %s (%s, sha256 %s)", machine.name, machine.id, machine.fingerprint.hex())
    link.send(Paired(certificate.machine_name(), key), deadline)
