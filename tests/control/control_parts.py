"""What tests of the control socket share: a pool without processes, and a server over it."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from forgellm import Generation, Supervisor
from forgellm.control.frames import RELEASE, Identity
from forgellm.control.server import ControlServer
from forgellm.control.unix import UnixAddress, UnixListener
from forgellm.errors import ForgeLLMError
from forgellm.messages import Request
from forgellm.supervisor import Loaded, PoolStatus
from forgellm.supervisor.pool import Pool
from forgellm.supervisor.supervisor import Settings
from forgellm.supervisor.watch import Watch, Watches


@dataclass
class FakePool:
    """The verbs that a test needs, answered at once; `on_submit` plays the worker."""

    on_submit: Callable[[Request, Generation], None] = lambda request, generation: None
    error: ForgeLLMError | None = None
    submitted: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    watches: Watches = field(default_factory=Watches)

    def status(self) -> PoolStatus:
        if self.error is not None:
            raise self.error
        return Pool(Settings(), 0).status()

    def load(self, model: str, **options: Any) -> Loaded:
        self.loads.append({"model": model, **options})
        return Loaded(model=model, adapter_path=None, loading_time_s=0.5, already_loaded=False)

    def submit(self, request: Request) -> Generation:
        self.submitted.append(request)
        generation = Generation(request.request_id, request.model, self.abort)
        self.on_submit(request, generation)
        return generation

    def watch(self) -> Watch:
        return self.watches.begin()

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)


@dataclass
class Served:
    pool: FakePool
    address: UnixAddress
    server: ControlServer

    def raw(self) -> socket.socket:
        """A connection that says nothing by itself."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        sock.connect(str(self.address.socket_path))
        return sock


@contextmanager
def served(folder: Path, pool: FakePool | None = None, **options: Any) -> Iterator[Served]:
    """A control server over a fake pool, in this process."""
    fake = pool or FakePool()
    address = UnixAddress(folder / "s" / "control.sock")
    listener = UnixListener(address)
    listener.claim()
    listener.listen()
    identity = Identity(os.getpid(), "", RELEASE)
    server = ControlServer(cast("Supervisor", fake), identity, [listener], **options)
    server.start()
    try:
        yield Served(fake, address, server)
    finally:
        server.stop()
        listener.close()
