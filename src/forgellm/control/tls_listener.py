"""Where paired machines reach the daemon: TCP, TLS 1.3 and certificates that it knows. Serves nothing itself.

A peer that is not known costs a thread a few seconds at most, and there are only so many such threads.
"""

import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from forgellm.control import certificate, handshake, machines, pairing, tls
from forgellm.control.certificate import Certificate
from forgellm.control.frames import BadFrame
from forgellm.control.link import Link, LinkLost
from forgellm.control.machines import Machine
from forgellm.errors import AddressInUse, ConfigError, ForgeLLMError

HANDSHAKE_TIMEOUT_S = 3.0  # for TLS; the handshake of the control socket has a second more
STRANGERS = 64  # of the connections that are served at once; more would keep this machine's own clients out
BACKLOG = 128

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """This machine's certificate, and those of its clients by their fingerprints, as `context` takes them."""

    own: Certificate
    context: ssl.SSLContext
    clients: dict[bytes, Machine]


class TlsListener:
    """claim() early, listen() when calls can be answered, then close()."""

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self._host = host
        self._port = port
        self._folder = folder
        self._strangers = threading.BoundedSemaphore(STRANGERS)
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._known: _Known | None = None
        self.sock: socket.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)

    def __str__(self) -> str:
        port = self.sock.getsockname()[1]
        return f"tls://[{self._host}]:{port}" if ":" in self._host else f"tls://{self._host}:{port}"

    def claim(self) -> None:
        """Take the port, and make or read the certificate. Raises AddressInUse, ConfigError."""
        self._who_is_known()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.sock.bind((self._host, self._port))
        except OSError as error:
            where = f"{self._host}:{self._port}"
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(f"{where} is in use already; set another `control_port`") from error
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}", field="control_host") from error

    def listen(self) -> None:
        self.sock.listen(BACKLOG)
        log.info("paired machines are served on %s", self)

    def close(self) -> None:
        """Idempotent."""
        self.sock.close()

    def admit(self, sock: socket.socket) -> Link | None:
        """A connection that was just accepted: TLS, and who it is; None if it came to be paired, and is.

        Raises LinkLost, or the error that the client was told; each names the peer's address, and none its words."""
        peer = _peer(sock)
        if not self._strangers.acquire(blocking=False):
            raise LinkLost(f"{peer} is refused: {STRANGERS} strangers are being looked at")
        try:
            return self._admit(sock)
        except BadFrame as error:
            raise LinkLost(f"{peer} is refused: it does not speak as a paired machine does") from error
        except LinkLost as error:
            raise LinkLost(f"{peer} is refused: it left, or said nothing") from error
        except OSError as error:
            raise LinkLost(f"{peer} is refused: {tls.reason(error)}") from error
        except ForgeLLMError as error:
            raise type(error)(f"{peer} is refused: {error.message}") from error
        finally:
            self._strangers.release()

    def _admit(self, sock: socket.socket) -> Link | None:
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        known = self._who_is_known()
        # A duplicate: TLS takes its socket over, and the server must be able to cut the one that it accepted.
        secured = tls.secure(sock.dup(), known.context, deadline)
        link = Link(secured, "a client")
        try:
            seen = tls.peer_fingerprint(secured)
            if seen is None:
                pairing.accept(link, self._folder, deadline)
                link.close()
                return None
            machine = known.clients.get(seen)
            if machine is None:
                raise BadFrame("a certificate that is not known")
            handshake.accept(link, machine.key, known.own.fingerprint + seen)
        except BaseException:  # whatever it was, it goes on up; only the socket is closed
            link.close()
            raise
        return link

    def _who_is_known(self) -> "_Known":
        """By the files as they are now: who is revoked is not let in from the next connection on."""
        with self._lock:
            own = certificate.own(self._folder)
            stamp = _stamp(machines.file_of(self._folder))
            if self._known is None or own != self._known.own or stamp != self._stamp:
                clients = [each for each in machines.read(self._folder) if each.role == "client"]
                try:
                    context = tls.server_context(own, [each.certificate for each in clients])
                except (ssl.SSLError, OSError) as error:
                    raise ConfigError(
                        f"a certificate in {self._folder} cannot be used: {error}", field="machines_dir"
                    ) from error
                self._known = _Known(own, context, {each.fingerprint: each for each in clients})
                self._stamp = stamp
            return self._known


def _peer(sock: socket.socket) -> str:
    """The peer's address, without its port: one peer is told once, however often it comes."""
    with contextlib.suppress(OSError):
        return str(sock.getpeername()[0])
    return "a peer that is gone"


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
