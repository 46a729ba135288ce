"""Two machines with a cable between them, as network namespaces; and what a listener on the cable would have.

Where namespaces are not permitted, both machines are this one, and the listener is a proxy.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_ALL_PROTOCOLS = 0x0300  # ETH_P_ALL, in network order

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Host:
    """One of the two machines. `namespace` "": it is this one."""

    ip: str
    namespace: str = ""

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` there."""
        return ["ip", "netns", "exec", self.namespace, *words] if self.namespace else list(words)

    def run(self, action: Callable[[], _Result]) -> _Result:
        """What `action` returns or raises when a thread that is there runs it; its sockets stay there."""
        if not self.namespace:
            return action()
        results: list[_Result] = []
        errors: list[BaseException] = []

        def there() -> None:
            try:
                self._enter()
                results.append(action())
            except BaseException as error:  # noqa: BLE001 - handed on to the caller, whatever it is
                errors.append(error)

        thread = threading.Thread(target=there)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def _enter(self) -> None:
        """This thread, and no other, is in the namespace from now on."""
        descriptor = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)


def why_no_namespaces() -> str:
    """Why there can be none here; "" if there can."""
    if shutil.which("ip") is None:
        return "no `ip` (iproute2) is installed"
    probe = f"fg{os.getpid()}"
    refused = _ip("netns", "add", probe)
    _ip("netns", "del", probe)
    return f"network namespaces are not permitted: {refused}" if refused else ""


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces with a virtual cable between their only interfaces. Needs the rights for it."""
    here, there = (Host(f"10.77.0.{number}", f"fg{os.getpid()}-{number}") for number in (1, 2))
    try:
        for host in (here, there):
            _must("netns", "add", host.namespace)
        _must("link", "add", "fg0", "netns", here.namespace, "type", "veth", "peer", "fg0", "netns", there.namespace)
        for host in (here, there):
            _must("-n", host.namespace, "address", "add", f"{host.ip}/24", "dev", "fg0")
            for device in ("lo", "fg0"):
                _must("-n", host.namespace, "link", "set", device, "up")
        yield here, there
    finally:
        for host in (here, there):
            _ip("netns", "del", host.namespace)


def _ip(*words: str) -> str:
    """What it complains about; "" if it is done."""
    run = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)  # noqa: S607 - in sbin or bin
    return run.stderr.strip() if run.returncode else ""


def _must(*words: str) -> None:
    complaint = _ip(*words)
    assert not complaint, f"ip {' '.join(words)}: {complaint}"


class Capture(threading.Thread):
    """Every packet on the cable at `host`, from now on."""

    def __init__(self, host: Host) -> None:
        super().__init__(daemon=True)
        self._sock = host.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL_PROTOCOLS))
        self._sock.bind(("fg0", 0))
        self._sock.settimeout(0.2)
        self._packets: list[bytes] = []
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while True:
            try:
                self._packets.append(self._sock.recv(1 << 16))
            except TimeoutError:
                if self._is_over.is_set():
                    return

    def stop(self) -> bytes:
        """All of them, when there are no more."""
        self._is_over.set()
        self.join(10)
        self._sock.close()
        return b"".join(self._packets)


class Wire(threading.Thread):
    """A port of its own between clients and `target`; keeps what each side says."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.target = target
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self._threads: list[threading.Thread] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._sock.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> bytes:
        """All that was said."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for thread in [self, *self._threads]:
            thread.join(5)
        return b"".join(self.up) + b"".join(self.down)

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            down = threading.Thread(target=_pump, args=(server, client, self.down), daemon=True)
            down.start()
            _pump(client, server, self.up)
            down.join(5)


def _pump(source: socket.socket, sink: socket.socket, kept: list[bytes]) -> None:
    try:
        while data := source.recv(1 << 16):
            kept.append(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one of the two has left


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
