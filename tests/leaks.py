"""What the test process holds: child processes, threads, descriptors; and what of it was not there before."""

import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

Held = tuple[set[str], ...]

GRACE_S = 5.0  # for the kernel to reap what was already told to end


def children() -> set[str]:
    """Every living descendant of this process as text, multiprocessing's own resource tracker apart."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in command:
                found.add(f"{process.pid} {command}")
        except psutil.NoSuchProcess:
            continue
    return found


def threads() -> set[str]:
    return {f"{thread.ident} {thread.name}" for thread in threading.enumerate()}


def descriptors() -> set[str]:
    """Open file descriptors and what they point to; empty where the system does not list them."""
    found = set()
    for entry in Path("/proc/self/fd").glob("*"):
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except OSError:
            continue  # the descriptor that glob itself reads the folder with
    return found


def held() -> Held:
    """Children, threads, descriptors. multiprocessing's resource tracker, once per process, is started first."""
    resource_tracker.ensure_running()
    return children(), threads(), descriptors()


def leftovers(before: Held, look: Callable[[], Held] = held) -> list[str]:
    """What `look` sees now and was not there before, after up to GRACE_S for it to go away."""
    deadline = time.monotonic() + GRACE_S
    pause = threading.Event()
    while True:
        new = [thing for past, now in zip(before, look(), strict=True) for thing in now - past]
        if not new or time.monotonic() > deadline:
            return new
        pause.wait(0.02)
