"""A web server without models: the HTTP routes over a daemon that runs elsewhere. Starts no worker and no daemon.

Either side may be restarted without the other: while no daemon answers, requests get 503 `supervisor_unavailable`.
"""

import logging
import sys
import threading
from collections.abc import Callable

from forgellm.config import Settings
from forgellm.daemon import LAST_WORDS_S, SWITCH_INTERVAL_S, StopSignals, be_impatient, run_until_stopped, settle

log = logging.getLogger(__name__)


def run(settings: Settings, connect: str | None = None, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Serve the daemon at `connect`, or that of the settings, until a signal. Returns an exit code of daemon.run()."""
    return run_until_stopped(settings, lambda signals: _serve(settings, connect, on_ready, signals))


def _serve(
    settings: Settings, connect: str | None, on_ready: Callable[[str], None] | None, signals: StopSignals
) -> None:
    from forgellm.api.app import create_app
    from forgellm.api.gate import Gate
    from forgellm.api.http_server import HttpServer
    from forgellm.control import ModelManager

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gate = Gate(settings.max_streams)
    manager = ModelManager(settings, connect=connect, autostart=False)
    server = HttpServer(create_app(manager, settings, gate), settings, gate)
    server.bind()
    try:
        server.start()
        settle()
        log.info("serving on %s what %s has", server.url, manager.address)
        if on_ready is not None:
            on_ready(server.url)
        signals.wait()
        log.info("stopping: running requests have %g s (another signal ends them)", settings.shutdown_grace_s)
        gate.drain()
        threading.Thread(target=be_impatient, args=(signals, gate), name="signals", daemon=True).start()
        gate.wait_empty(settings.shutdown_grace_s)
    finally:
        gate.close()
        gate.wait_empty(LAST_WORDS_S)
        server.stop()
        manager.close()
