"""One connected socket that carries frames, with deadlines and size limits. Knows no call and no handshake."""

import contextlib
import socket
import ssl
import time
from typing import Any, TypeVar

from msgspec.msgpack import Decoder

from forgellm.control.frames import FRAME_LIMIT_BYTES, HEADER_BYTES, BadFrame, decode, encode

READ_BYTES = 1 << 16

_CLOSED_MEANWHILE = (ValueError, AttributeError)  # what an SSLSocket raises that another thread closes in mid-call

_Frame = TypeVar("_Frame")


class LinkLost(Exception):
    """The peer is gone, or takes too long: nothing more comes over this link."""


class Link:
    """A frame at a time, by one thread; only close() may come from another one. `name` says who the peer is."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self._socket = sock
        self._buffer = bytearray()

    def send(self, frame: Any, deadline: float) -> None:
        """Raises LinkLost if the peer does not take all of it before `deadline`, a monotonic instant."""
        rest = memoryview(encode(frame))
        try:
            while rest:  # and not sendall(), whose timeout begins anew with each piece that TLS makes of it
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                rest = rest[self._socket.send(rest) :]
        except (OSError, *_CLOSED_MEANWHILE) as error:
            raise LinkLost(f"{self.name}: {error}") from error

    def offer(self, frame: Any, deadline: float) -> None:
        """As send(), but a peer that does not take it is no error: it may have said something before it left."""
        with contextlib.suppress(LinkLost):
            self.send(frame, deadline)

    def receive(self, decoder: "Decoder[_Frame]", deadline: float | None, limit: int = FRAME_LIMIT_BYTES) -> _Frame:
        """The next frame. Raises LinkLost at the peer's end or at `deadline` (None: waits for ever), BadFrame."""
        found = self.poll(decoder, deadline, limit)
        if found is None:
            raise LinkLost(f"{self.name} did not answer in time")
        return found

    def poll(self, decoder: "Decoder[_Frame]", deadline: float | None, limit: int = FRAME_LIMIT_BYTES) -> _Frame | None:
        """As receive(), but None at the deadline; a frame that has come in part is kept for the next call."""
        while True:
            if len(self._buffer) >= HEADER_BYTES:
                length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
                if length > limit:
                    raise BadFrame(f"a frame of {length} bytes, where {limit} are the most")
                end = HEADER_BYTES + length
                if len(self._buffer) >= end:
                    body = bytes(self._buffer[HEADER_BYTES:end])
                    del self._buffer[:end]
                    return decode(body, decoder)
            if not self._read(deadline):
                return None

    def is_gone(self) -> bool:
        """Whether the peer has closed its end, now."""
        try:
            return self._read(0.0) and len(self._buffer) > FRAME_LIMIT_BYTES
        except LinkLost:
            return True

    def close(self) -> None:
        """Whoever waits in receive() gets LinkLost. Idempotent."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own: it takes TLS off first, and what another thread sends then would go out in clear.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, deadline: float | None) -> bool:
        """Take what has come; False if nothing came before the deadline."""
        try:
            self._socket.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))
            data = self._socket.recv(READ_BYTES)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return False
        except (OSError, *_CLOSED_MEANWHILE) as error:
            raise LinkLost(f"{self.name}: {error}") from error
        if not data:
            raise LinkLost(f"{self.name} closed the connection")
        self._buffer += data
        return True
