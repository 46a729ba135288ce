"""Tells a service manager how the daemon is, in systemd's notify protocol: datagrams of NAME=value lines.

Without a service manager it says nothing. Must not claim progress that nobody made: each watchdog message asks first.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """The daemon's side: ready(), then stopping(), then close()."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """`environ`: os.environ. Its variables of the protocol are taken out: they are not meant for our children."""
        given = os.environ if environ is None else environ
        path = given.pop("NOTIFY_SOCKET", "")
        watchdog_us, watchdog_pid = given.pop("WATCHDOG_USEC", ""), given.pop("WATCHDOG_PID", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        is_watched = bool(path) and watchdog_us.isdecimal() and watchdog_pid in {"", str(os.getpid())}
        self._interval_s = int(watchdog_us) / 2e6 if is_watched else 0.0  # twice as often as is asked for
        self._is_stopping = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self, words: str, is_alive: Callable[[float], bool]) -> None:
        """Requests are answered. From now on `is_alive(timeout_s)` is asked before each message to the watchdog."""
        self._tell(f"READY=1\nSTATUS={words}\nMAINPID={os.getpid()}")
        if self._interval_s:
            self._thread = threading.Thread(target=self._watch, args=(is_alive,), name="watchdog", daemon=True)
            self._thread.start()

    def stopping(self) -> None:
        """The end has begun; how long it may take is the service manager's own limit, not the watchdog's."""
        self._is_stopping = True
        self._tell("STOPPING=1\nSTATUS=stopping")

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(self._interval_s + 1.0)

    def _watch(self, is_alive: Callable[[float], bool]) -> None:
        while not self._closed.is_set():
            if self._is_stopping or is_alive(self._interval_s):
                self._tell("WATCHDOG=1")
            else:
                log.error("the supervisor's thread does not answer: the service manager's watchdog is not told")
            self._closed.wait(self._interval_s)

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            log.warning("the service manager does not hear: %s", error)
