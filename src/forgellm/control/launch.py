"""Starts a daemon that outlives whoever asked for it, unless one runs by then. Waits until it answers, or says why not.

Its output goes to a file beside its socket: a pipe that nobody reads would stop it one day.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from forgellm.config import ENV_PREFIX, Settings, as_variables
from forgellm.control.unix import Lock, UnixAddress, wait_for
from forgellm.errors import SupervisorUnavailable, Unavailable, VersionSkew

START_TIMEOUT_S = 60.0
POLL_S = 0.05
LOG_TAIL_BYTES = 2000

# Between us and the daemon, so that it is nobody's child: no zombie of ours, and not in our session.
_MIDDLEMAN = """
import os, subprocess, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
command = [sys.executable, "-m", "forgellm.daemon"]
daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
os.write(1, str(daemon.pid).encode())
os._exit(0)
"""


def start_daemon(settings: Settings, address: UnixAddress) -> None:
    """Return when a daemon answers at `address`: ours, or one that somebody else started meanwhile.

    One process at a time looks and starts. Raises SupervisorUnavailable with the end of the daemon's log."""
    address.check()
    with Lock(address.start_lock_path) as lock:
        if not wait_for(lock, START_TIMEOUT_S):
            raise SupervisorUnavailable(f"process {lock.owner()} has been starting a daemon for {START_TIMEOUT_S:g} s")
        if not _answers(address):
            _wait_until_it_answers(address, _launch(settings, address.log_path))


def _launch(settings: Settings, log_path: Path) -> int:
    """The process id of a new daemon. The log of the one before is kept."""
    with contextlib.suppress(FileNotFoundError):
        log_path.replace(log_path.with_suffix(".log.1"))
    own = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.__struct_fields__}
    env = {name: value for name, value in os.environ.items() if name not in own} | as_variables(settings)
    try:
        started = subprocess.run(
            [sys.executable, "-c", _MIDDLEMAN, str(log_path)],
            stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=START_TIMEOUT_S, check=True,
        )  # fmt: skip
        return int(started.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SupervisorUnavailable(f"no daemon could be started: {error}") from error


def _wait_until_it_answers(address: UnixAddress, pid: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(address):
        if not _lives(pid):
            tail = _tail(address.log_path)
            raise SupervisorUnavailable(f"the daemon that was started has ended ({address.log_path}): {tail}")
        if time.monotonic() > deadline:
            raise SupervisorUnavailable(f"the daemon (process {pid}) does not answer after {START_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _answers(address: UnixAddress) -> bool:
    try:
        address.dial().close()
    except VersionSkew:
        raise
    except SupervisorUnavailable:
        return False
    except Unavailable:
        return True  # it is busy
    return True


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tail(path: Path) -> str:
    """The last line of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    return lines[-1] if lines else "it said nothing"
