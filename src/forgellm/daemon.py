"""The daemon: a supervisor and the HTTP server in one process, in the foreground. Decides nothing about models.

The top of this module stays thin, and nothing in this process imports mlx or transformers.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from forgellm import logs
from forgellm.config import Settings
from forgellm.errors import AddressInUse, ConfigError, ForgeLLMError

if TYPE_CHECKING:
    from forgellm.api.gate import Gate
    from forgellm.api.http_server import HttpServer
    from forgellm.control.server import ControlServer
    from forgellm.control.tls_listener import TlsListener
    from forgellm.control.unix import UnixAddress, UnixListener
    from forgellm.supervisor import Supervisor
    from forgellm.supervisor.journal import Restore

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_ADDRESS_IN_USE = 3

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAST_WORDS_S = 2.0  # for running streams to write their last line
STOP_TIMEOUT_S = 30.0
SWITCH_INTERVAL_S = 0.001  # of Python's threads, 5 ms by default: at 100 streams, halves the wait for the first byte

log = logging.getLogger(__name__)


def main() -> None:
    """The `forgellm-supervisor` program: `forgellm serve` under a name that process lists show."""
    from forgellm.cli.commands import serve

    serve.main(prog_name="forgellm-supervisor")


def run(
    settings: Settings,
    preload: Sequence[str] = (),
    *,
    on_ready: Callable[[str], None] | None = None,
    reread: Callable[[], Settings] | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or the end of its terminal, then stop everything; returns the exit code.

    `preload` names models to load besides those that the settings preload. `on_ready` is called with the URL once
    requests are answered. `reread` reads the settings again, for SIGHUP and other reloads. Codes: 0, a clean stop; 2,
    settings, or a preloaded model, that cannot be used; 3, the address is in use (told before any worker is started);
    1, anything else. The reason goes to stderr.
    """
    return run_until_stopped(settings, lambda signals: _serve(settings, preload, on_ready, reread, signals))


def run_until_stopped(settings: Settings, serve: Callable[["StopSignals"], None]) -> int:
    """Log to stderr, call `serve`, which returns after a signal, and turn what goes wrong into an exit code."""
    logs.set_up(settings)
    try:
        with stop_signals() as signals:
            serve(signals)
    except ForgeLLMError as error:
        sys.stderr.write(f"Error: {error.message}\n")
        return exit_code(error)
    return EXIT_OK


def exit_code(error: ForgeLLMError) -> int:
    """How a program that ends with `error` tells the shell."""
    if isinstance(error, AddressInUse):
        return EXIT_ADDRESS_IN_USE
    return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED


def _serve(
    settings: Settings,
    preload: Sequence[str],
    on_ready: Callable[[str], None] | None,
    reread: Callable[[], Settings] | None,
    signals: "StopSignals",
) -> None:
    from forgellm.api.app import create_app
    from forgellm.api.gate import Gate
    from forgellm.api.http_server import HttpServer
    from forgellm.control.frames import RELEASE, Identity
    from forgellm.control.server import ControlServer
    from forgellm.control.unix import UnixAddress
    from forgellm.notify import Notifier
    from forgellm.supervisor import Supervisor
    from forgellm.supervisor.journal import Journal, JournalKeeper

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    notifier = Notifier()
    gate = Gate(settings.max_streams)
    supervisor = Supervisor(settings, reread=reread)
    server = HttpServer(create_app(supervisor, settings, gate), settings, gate)
    server.bind()
    address = UnixAddress(settings.socket_path)
    listeners = _listeners(settings, address)
    control = ControlServer(supervisor, Identity(os.getpid(), server.url, RELEASE), listeners)
    journal = Journal(address.journal_path)
    try:
        for listener in listeners:
            listener.claim()
        supervisor.start()
        with journal.starting(time.time()) as restore:
            _preload(supervisor, [] if restore.is_held_back else _configured(settings), preload)
            _restore(supervisor, restore)
            for listener in listeners:
                listener.listen()
            control.start()
            server.start()
        keeper = JournalKeeper(journal, supervisor.status)
        _tell_ready(server.url, address, on_ready)
        notifier.ready(f"serving on {server.url}", supervisor.is_alive)
        signals.wait(on_reload=lambda: _reload(supervisor))
        notifier.stopping()
        _drain(signals, gate, control, settings.shutdown_grace_s)
        keeper.close()
    finally:
        _stop(gate, control, supervisor, server)
        for listener in listeners:
            listener.close()
        notifier.close()


def settle() -> None:
    """Spare what was made until now, which stays, from garbage collections: with thousands of connections, one of
    0.1 s and more held up every thread."""
    gc.collect()
    gc.freeze()


def _listeners(settings: Settings, address: "UnixAddress") -> "list[UnixListener | TlsListener]":
    """The ways to the control socket: of this machine, and of paired ones if the settings say where."""
    from forgellm.control.tls_listener import TlsListener
    from forgellm.control.unix import UnixListener

    if not settings.control_host:
        return [UnixListener(address)]
    return [UnixListener(address), TlsListener(settings.control_host, settings.control_port, settings.machines_path)]


def _tell_ready(url: str, address: "UnixAddress", on_ready: Callable[[str], None] | None) -> None:
    settle()
    log.info("serving on %s and %s", url, address)
    if on_ready is not None:
        on_ready(url)


def _drain(signals: "StopSignals", gate: "Gate", control: "ControlServer", grace_s: float) -> None:
    """Nobody is let in any more; those inside have `grace_s`, or until somebody is impatient."""
    log.info("stopping: no new requests; running ones have %g s (another signal ends them)", grace_s)
    deadline = time.monotonic() + grace_s
    gate.drain()
    control.drain()
    threading.Thread(target=be_impatient, args=(signals, gate, control), name="signals", daemon=True).start()
    gate.wait_empty(grace_s)
    control.wait_empty(max(0.0, deadline - time.monotonic()))


def be_impatient(signals: "StopSignals", *inside: "Gate | ControlServer") -> None:
    """A second signal ends running requests now; a third ends everything: the guardian buries the workers."""
    signals.wait()
    log.warning("stopping at once; a third signal ends the daemon as it is")
    for each in inside:
        each.close()
    signals.wait()
    os._exit(EXIT_FAILED)


def _stop(gate: "Gate", control: "ControlServer", supervisor: "Supervisor", server: "HttpServer") -> None:
    """Streams say their last line, workers end, then the last answers (of loads that waited) go out."""
    gate.close()
    control.close()
    gate.wait_empty(LAST_WORDS_S)
    control.wait_empty(LAST_WORDS_S)
    supervisor.stop(timeout_s=STOP_TIMEOUT_S)
    server.stop()
    control.stop()


def _reload(supervisor: "Supervisor") -> None:
    try:
        log.info("reloaded: %s", supervisor.reload())
    except ForgeLLMError as error:
        log.error("not reloaded, nothing has changed: %s", error.message)


def _configured(settings: Settings) -> list[str]:
    return [name for name, model in settings.models.items() if model.preload]


def _preload(supervisor: "Supervisor", configured: Sequence[str], named: Sequence[str]) -> None:
    for name in dict.fromkeys([*configured, *named]):
        try:
            supervisor.load(name, wait=False)
        except ForgeLLMError as error:
            raise ConfigError(f"cannot load {name}: {error.message}") from error


def _restore(supervisor: "Supervisor", restore: "Restore") -> None:
    """Load again what a daemon that died had loaded; what cannot be loaded any more is told, and left out."""
    if restore.reason:
        log.warning("%s", restore.reason)
    for load in restore.models:
        try:
            options = {field: getattr(load, field) for field in load.__struct_fields__}
            supervisor.load(**options, wait=False)
        except ForgeLLMError as error:
            log.warning("%s is not loaded again: %s", load.model, error.message)


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP as bytes in a pipe, for any thread to wait() at.

    SIGHUP asks for a reload, unless it says that the terminal has gone that the program was started at."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self._had_terminal = _has_terminal()

    def wait(self, on_reload: Callable[[], None] | None = None) -> None:
        """Return at the next signal to stop that no earlier wait() returned for; meanwhile, reload when asked to.

        Without `on_reload`, SIGHUP stops like the others."""
        while os.read(self._reader, 1)[0] == signal.SIGHUP and _has_terminal() == self._had_terminal:
            if on_reload is None:
                return
            on_reload()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """The signals that stop the daemon; the old handlers come back at the end. The pipe stays: a thread waits at it.

    The byte is written by the interpreter's C handler, at once and in whatever thread the system chose. A handler in
    Python would only run when the main thread wakes, which a signal that another thread got does not make it do."""
    signals = StopSignals()
    previous_fd = signal.set_wakeup_fd(signals.writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, lambda number, frame: None) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)


if __name__ == "__main__":
    main()
