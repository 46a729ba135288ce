"""The notify and watchdog protocol, from the service manager's side: a unix datagram socket."""

import os
import select
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemons import daemon
from forgellm.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def environ(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def is_quiet(manager: socket.socket, for_s: float) -> bool:
    return select.select([manager], [], [], for_s)[0] == []


def test_without_a_service_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("there is nobody to tell"))
    notifier = Notifier({"WATCHDOG_USEC": "1000"})
    notifier.ready("serving", lambda timeout_s: bool(asked.append(timeout_s)))
    notifier.stopping()
    notifier.close()
    assert asked == []


def test_its_variables_are_kept_from_children(manager: socket.socket) -> None:
    """A worker that spoke for the daemon would feed the watchdog of a daemon that hangs."""
    given = environ(manager, WATCHDOG_USEC="1000000", WATCHDOG_PID=str(os.getpid()), HOME="/")
    Notifier(given)
    assert given == {"HOME": "/"}


def test_ready_and_stopping_are_said(manager: socket.socket) -> None:
    notifier = Notifier(environ(manager))
    notifier.ready("serving on http://x", lambda timeout_s: True)
    assert heard(manager) == ["READY=1", "STATUS=serving on http://x", f"MAINPID={os.getpid()}"]
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1", "STATUS=stopping"]
    notifier.close()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"forgellm-test-{os.getpid()}"
        sock.bind("\0" + name)
        sock.settimeout(20)
        Notifier({"NOTIFY_SOCKET": "@" + name}).stopping()
        assert heard(sock)[0] == "STOPPING=1"


def test_the_watchdog_hears_only_of_real_progress(manager: socket.socket) -> None:
    """While the supervisor answers, twice in each interval; while it does not, nothing; at the end, again."""
    answers, is_alive = threading.Event(), True

    def ask(timeout_s: float) -> bool:
        answers.set()
        assert timeout_s == 0.02
        return is_alive

    notifier = Notifier(environ(manager, WATCHDOG_USEC="40000", WATCHDOG_PID=str(os.getpid())))
    notifier.ready("serving", ask)
    assert heard(manager)[0] == "READY=1"
    assert [heard(manager) for _ in range(3)] == [["WATCHDOG=1"]] * 3
    is_alive = False
    answers.clear()
    answers.wait(10)
    while not is_quiet(manager, 0.1):
        heard(manager)  # said before it stopped answering
    notifier.stopping()
    assert heard(manager)[0] == "STOPPING=1"
    assert heard(manager) == ["WATCHDOG=1"]
    notifier.close()


def test_a_watchdog_of_another_process_is_not_ours(manager: socket.socket) -> None:
    notifier = Notifier(environ(manager, WATCHDOG_USEC="40000", WATCHDOG_PID="1"))
    notifier.ready("serving", lambda timeout_s: True)
    heard(manager)
    assert is_quiet(manager, 0.1)
    notifier.close()


def test_a_manager_that_is_gone_costs_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).stopping()
    assert "does not hear" in caplog.text


@pytest.mark.e2e
def test_the_daemon_speaks_the_protocol(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY once it serves, the watchdog while its supervisor answers, STOPPING when it is told to end."""
    for name, value in environ(manager, WATCHDOG_USEC="200000").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "d").mkdir()
    with daemon(tmp_path / "d", "spare = false") as served:
        first = heard(manager)
        assert first == ["READY=1", f"STATUS=serving on {served.url}", f"MAINPID={served.process.pid}"]
        assert heard(manager) == ["WATCHDOG=1"]
        assert served.stop() == 0
    said = []
    while not is_quiet(manager, 0):
        said += heard(manager)
    assert "STOPPING=1" in said
