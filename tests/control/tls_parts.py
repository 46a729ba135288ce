"""Two machines for tests: a control server over TLS with a fake pool, and a folder of the machine that uses it."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from control_parts import FakePool

from forgellm import ModelManager, Settings, Supervisor
from forgellm.control import certificate, machines, pairing
from forgellm.control.frames import RELEASE, Identity
from forgellm.control.server import ControlServer
from forgellm.control.tls import TlsAddress
from forgellm.control.tls_listener import TlsListener


@dataclass
class Linked:
    """`here`: machines_dir of the daemon's machine; `there`: of the other one."""

    pool: FakePool
    here: Path
    there: Path
    address: TlsAddress

    def code(self) -> str:
        return machines.new_code(self.here, certificate.own(self.here).fingerprint)

    def pair(self) -> machines.Machine:
        return pairing.pair(self.address, self.code(), self.there)

    def client(self, there: Path | None = None) -> ModelManager:
        settings = Settings(machines_dir=str(there or self.there))
        return ModelManager(settings, connect=str(self.address), resume_timeout_s=0.2)

    def raw(self) -> socket.socket:
        """A TCP connection that says nothing by itself."""
        return socket.create_connection((self.address.host, self.address.port), timeout=10)


@contextmanager
def linked(folder: Path, pool: FakePool | None = None, **options: Any) -> Iterator[Linked]:
    """A control server over TLS on loopback, in this process."""
    fake = pool or FakePool()
    here, there = folder / "here", folder / "there"
    listener = TlsListener("127.0.0.1", 0, here)
    listener.claim()
    listener.listen()
    server = ControlServer(cast("Supervisor", fake), Identity(os.getpid(), "", RELEASE), [listener], **options)
    server.start()
    try:
        yield Linked(fake, here, there, TlsAddress("127.0.0.1", listener.sock.getsockname()[1], there))
    finally:
        server.stop(0.3)
        listener.close()


class Wire(threading.Thread):
    """Stands between a client and `target`, and keeps what each of them sends."""

    def __init__(self, target: TlsAddress) -> None:
        super().__init__(daemon=True)
        self._target = (target.host, target.port)
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self._ends: list[threading.Thread] = []
        self.start()

    @property
    def seen(self) -> bytes:
        return b"".join(self.up) + b"".join(self.down)

    def run(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            pumps = [
                threading.Thread(target=_pump, args=(client, server, self.up), daemon=True),
                threading.Thread(target=_pump, args=(server, client, self.down), daemon=True),
            ]
            self._ends += [*pumps, threading.Thread(target=_close_after, args=(pumps, client, server), daemon=True)]
            for thread in self._ends[-3:]:
                thread.start()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for thread in [self, *self._ends]:
            thread.join(5)


def _pump(source: socket.socket, sink: socket.socket, kept: list[bytes]) -> None:
    try:
        while data := source.recv(1 << 16):
            kept.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _close_after(pumps: list[threading.Thread], *socks: socket.socket) -> None:
    for thread in pumps:
        thread.join()
    for sock in socks:
        sock.close()
