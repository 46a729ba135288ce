"""Both sides prove that they know the key, by HMAC-SHA256 over each other's random bytes. The key never travels.

Must not wait without a deadline: a silent peer costs its own thread a second, and nobody else anything.
"""

import hmac
import secrets
import time

from forgellm.control.frames import (
    CHALLENGE,
    HANDSHAKE_LIMIT_BYTES,
    HELLO,
    PROOF,
    PROTOCOL,
    RELEASE,
    BadFrame,
    Challenge,
    Failed,
    Hello,
    Proof,
)
from forgellm.control.link import Link
from forgellm.errors import SupervisorUnavailable, VersionSkew

NONCE_BYTES = 32
SERVER_TIMEOUT_S = 1.0
CLIENT_TIMEOUT_S = 5.0  # a daemon under full load may take a while to say its first word


def accept(link: Link, key: bytes, binding: bytes = b"") -> None:
    """The server's side, one second at most. Raises BadFrame, LinkLost, or the error that the client was told.

    `binding` ties the proofs to the channel below (of TLS: its exporter); both sides must have the same one."""
    deadline = time.monotonic() + SERVER_TIMEOUT_S
    hello = link.receive(HELLO, deadline, HANDSHAKE_LIMIT_BYTES)
    if hello.protocol != PROTOCOL:
        raise _refuse(link, _skew(daemon=(PROTOCOL, RELEASE), client=(hello.protocol, hello.release)), deadline)
    if len(hello.nonce) != NONCE_BYTES:
        raise BadFrame("a nonce of the wrong length")
    nonce = secrets.token_bytes(NONCE_BYTES)
    link.send(Challenge(nonce, _proof(key, b"server", hello.nonce, nonce, binding)), deadline)
    answer = link.receive(PROOF, deadline, HANDSHAKE_LIMIT_BYTES)
    if not hmac.compare_digest(answer.proof, _proof(key, b"client", hello.nonce, nonce, binding)):
        raise _refuse(link, SupervisorUnavailable("the daemon refuses a client that does not know its key"), deadline)


def connect(link: Link, key: bytes, binding: bytes = b"") -> None:
    """The client's side. Raises VersionSkew, SupervisorUnavailable, the error that the server answered, LinkLost."""
    deadline = time.monotonic() + CLIENT_TIMEOUT_S
    nonce = secrets.token_bytes(NONCE_BYTES)
    link.offer(Hello(PROTOCOL, RELEASE, nonce), deadline)  # a server that refuses may have closed already
    answer = link.receive(CHALLENGE, deadline, HANDSHAKE_LIMIT_BYTES)
    if isinstance(answer, Failed):
        raise answer.error()
    if not hmac.compare_digest(answer.proof, _proof(key, b"server", nonce, answer.nonce, binding)):
        raise SupervisorUnavailable("whoever listens there does not know the daemon's key")
    link.send(Proof(_proof(key, b"client", nonce, answer.nonce, binding)), deadline)


def _proof(key: bytes, role: bytes, client_nonce: bytes, server_nonce: bytes, binding: bytes) -> bytes:
    """The nonces have a fixed length, so no two different inputs read the same."""
    return hmac.digest(key, role + client_nonce + server_nonce + binding, "sha256")


def _refuse(link: Link, error: SupervisorUnavailable, deadline: float) -> SupervisorUnavailable:
    link.offer(Failed.of(error), deadline)
    return error


def _skew(daemon: tuple[int, str], client: tuple[int, str]) -> VersionSkew:
    return VersionSkew(
        f"the daemon is ForgeLLM {daemon[1]} (protocol {daemon[0]}), the client {client[1]} (protocol {client[0]}); "
        "install the same release for both and restart the older one"
    )
