"""TLS 1.3 between two machines that know each other's certificate, and the way to a daemon over it. Pairs nobody."""

import socket
import ssl
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from forgellm.control import certificate, handshake, machines
from forgellm.control.certificate import Certificate, fingerprint
from forgellm.control.link import Link, LinkLost
from forgellm.errors import SupervisorUnavailable

CONNECT_TIMEOUT_S = 5.0
CONTEXTS = 16  # daemons that one process speaks with, and is not slow at
GONE_AFTER_S = 30  # a peer whose machine or cable is gone says nothing, and acknowledges nothing
_PORTABLE = {"TCP_KEEPIDLE": 15, "TCP_KEEPALIVE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class TlsAddress:
    """A daemon on another machine, which this one is paired with as `host`:`port`. `folder`: machines_dir."""

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self.host = host
        self.port = port
        self._folder = folder

    @property
    def place(self) -> str:
        """The name that it is paired under: host:port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"tls://{self.place}"

    def dial(self) -> Link:
        """A connection with both handshakes done. Raises SupervisorUnavailable, or what the daemon says."""
        machine = machines.daemon_at(self._folder, self.place)
        own = certificate.own(self._folder)
        sock = connect(self, client_context(own, machine.certificate), machine.fingerprint)
        link = Link(sock, f"the daemon at {self}")
        try:
            handshake.connect(link, machine.key, machine.fingerprint + own.fingerprint)
        except LinkLost as error:
            link.close()
            remedy = "if it does not know this machine any more, pair them again (`forgellm keys pair`)"
            raise SupervisorUnavailable(f"{error}; {remedy}") from error
        except BaseException:  # whatever it was, it goes on up; only the socket is closed
            link.close()
            raise
        return link


def connect(address: TlsAddress, context: ssl.SSLContext, expected: bytes) -> ssl.SSLSocket:
    """TCP and TLS to whoever has the certificate of that fingerprint. Raises SupervisorUnavailable."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    try:
        plain = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
    except OSError as error:
        why = error.strerror or str(error)
        raise SupervisorUnavailable(f"no daemon answers at {address} ({why})") from error
    try:
        return secure(plain, context, deadline, expected)
    except ssl.SSLCertVerificationError as error:
        raise SupervisorUnavailable(f"{address} has another certificate than the daemon that was paired") from error
    except OSError as error:
        why = f"{address} does not do the TLS handshake ({reason(error)})"
        raise SupervisorUnavailable(why) from error


def secure(
    plain: socket.socket, context: ssl.SSLContext, deadline: float, expected: bytes | None = None
) -> ssl.SSLSocket:
    """`plain` with TLS on it before `deadline`; it is used up. `expected`: as a client, of who has that fingerprint.

    Raises OSError, most often ssl.SSLError."""
    with plain:  # what wrap_socket has taken over is not closed by that
        _notice_what_is_gone(plain)
        sock = context.wrap_socket(plain, server_side=expected is None, do_handshake_on_connect=False)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.do_handshake()
        if expected is not None and peer_fingerprint(sock) != expected:
            raise ssl.SSLCertVerificationError("another certificate")
    except BaseException:  # whatever it was, it goes on up; only the socket is closed
        sock.close()
        raise
    return sock


def peer_fingerprint(sock: ssl.SSLSocket) -> bytes | None:
    """Of the certificate that the peer has proved to hold the key of; None if it showed none."""
    der = sock.getpeercert(binary_form=True)
    return fingerprint(der) if der else None


@lru_cache(CONTEXTS)  # reading the private key is a third of a call; another certificate is another entry
def client_context(own: Certificate, pinned: bytes) -> ssl.SSLContext:
    """For a daemon with exactly the certificate `pinned` (DER). One for all connections to it: change nothing in it."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, own)
    context.check_hostname = False  # a name proves less than the certificate itself
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=pinned)
    return context


def pairing_context() -> ssl.SSLContext:
    """For a daemon that is not known yet: secure() compares its fingerprint with the pairing code's."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, None)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(own: Certificate, clients: Iterable[bytes]) -> ssl.SSLContext:
    """For clients with one of these certificates (DER), or with none: those may only pair."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, own)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # a session that is resumed would not look at certificates again
    known = b"".join(clients)
    if known:
        context.load_verify_locations(cadata=known)
    return context


def is_certificate(der: bytes) -> bool:
    """Whether it can be pinned: OpenSSL reads it."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ssl.SSLError, ValueError):
        return False
    return True


def reason(error: OSError) -> str:
    """In a few words from a short list: peers must not write our logs."""
    if isinstance(error, TimeoutError):
        return "too slow"
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS"
    return error.strerror or type(error).__name__


def _context(protocol: int, own: Certificate | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    if own is not None:
        context.load_cert_chain(own.path)
    return context


def _notice_what_is_gone(sock: socket.socket) -> None:
    """Small frames at once; and an error, in time, if the other machine has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PORTABLE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_AFTER_S * 1000)
