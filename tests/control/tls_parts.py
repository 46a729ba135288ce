"""Two machines for tests: a control server over TLS with a fake pool, and a folder of the machine that uses it."""

import os
import socket
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
from networks import Host

LOOPBACK = Host("127.0.0.1")


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
def linked(folder: Path, pool: FakePool | None = None, host: Host = LOOPBACK, **options: Any) -> Iterator[Linked]:
    """A control server over TLS at `host`, in this process."""
    fake = pool or FakePool()
    here, there = folder / "here", folder / "there"
    listener = host.run(lambda: TlsListener(host.ip, 0, here))
    listener.claim()
    listener.listen()
    server = ControlServer(cast("Supervisor", fake), Identity(os.getpid(), "", RELEASE), [listener], **options)
    server.start()
    try:
        yield Linked(fake, here, there, TlsAddress(host.ip, listener.sock.getsockname()[1], there))
    finally:
        server.stop(0.3)
        listener.close()
