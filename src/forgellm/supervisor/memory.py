"""What the system has, and what it charges processes for, in bytes. Measures and reads; decides nothing."""

import ctypes
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

INTERVAL_S = 1.0
TIGHT_INTERVAL_S = 0.25
_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroups v2 and v1
_NO_LIMIT = 1 << 62  # what v1 says where there is none is about twice this
_EVENTS = ("memory.events", "memory.oom_control")
_LINUX_SHARE = 0.8
_MACOS_SHARE = 0.75  # what Metal recommends as the largest working set of larger machines; not measured here
_RUSAGE_INFO_V0 = 0
_FOOTPRINT_OFFSET = 72  # of ri_phys_footprint in rusage_info_v0: what macOS kills by; RSS is wrong both ways there


def footprint_bytes(pid: int) -> int | None:
    """Memory that comes back when this process ends: phys_footprint on macOS, USS elsewhere; None if it is gone."""
    if sys.platform == "darwin":
        buffer = ctypes.create_string_buffer(512)
        if ctypes.CDLL(None).proc_pid_rusage(pid, _RUSAGE_INFO_V0, buffer) == 0:
            return ctypes.c_uint64.from_buffer(buffer, _FOOTPRINT_OFFSET).value
    try:
        process = psutil.Process(pid)
        return int(process.memory_full_info().uss) or None  # 0: it is on its way out, its memory given back already
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    except OSError:  # no descriptor is left to look with: another time
        return None


def footprints(pids: Mapping[int, int]) -> dict[int, int]:
    """Footprint by life, of {life: pid}; those that are gone are left out."""
    found = {life: footprint_bytes(pid) for life, pid in pids.items()}
    return {life: size for life, size in found.items() if size is not None}


def automatic_budget_bytes() -> int:
    """What the workers may hold together if nobody says so: a share of the RAM, or of a lower limit of the cgroup."""
    total = psutil.virtual_memory().total
    if sys.platform == "darwin":
        return int(total * _MACOS_SHARE)
    return int(min(total, cgroup_limit_bytes()) * _LINUX_SHARE)


def cgroup_limit_bytes(root: Path = _CGROUPS, own: Path = _OWN) -> float:
    """The lowest limit of this process's cgroup and those above it; infinite where there is none."""
    limits = [_text(folder / name).strip() for folder in _cgroups(root, own) for name in _LIMITS]
    return min((int(limit) for limit in limits if limit.isdigit() and int(limit) < _NO_LIMIT), default=math.inf)


def oom_kills(root: Path = _CGROUPS, own: Path = _OWN) -> int:
    """How many processes the kernel has killed for memory in this process's cgroup; 0 where it does not say."""
    for path in (folder / name for folder in _cgroups(root, own) for name in _EVENTS):
        for line in _text(path).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return 0


class OomWatch:
    """Tells a SIGKILL by the kernel's OOM killer from any other, where cgroups count them."""

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._seen = count()

    def explain(self, exit_code: int) -> str:
        """Words for the end of a worker that was killed for memory, "" for any other end."""
        if exit_code != -signal.SIGKILL:
            return ""
        seen, self._seen = self._seen, self._count()
        if self._seen <= seen:
            return ""
        return "the worker was killed by the system: out of memory (oom_kill of the cgroup)"


def _cgroups(root: Path = _CGROUPS, own: Path = _OWN) -> Iterator[Path]:
    """The folder of this process's cgroup, then those above it: of v1's memory controller if it is in use, else of v2.
    See cgroups(7)."""
    lines = [line.split(":", 2) for line in _text(own).splitlines()]
    paths = {controllers: path.lstrip("/") for _, controllers, path in lines}
    if "memory" in paths:
        top, folder = root / "memory", root / "memory" / paths["memory"]
    elif "" in paths:
        top, folder = root, root / paths[""]
    else:
        return
    while folder.is_relative_to(top):
        yield folder
        folder = folder.parent


def _text(path: Path) -> str:
    """An empty text for what is not there: another system, or an older kernel."""
    try:
        return path.read_text("ascii")
    except OSError:
        return ""


class Sampler:
    """Measures the given processes about once a second in a thread of its own: a large one takes milliseconds."""

    def __init__(
        self,
        pids: Callable[[], Mapping[int, int]],
        report: Callable[[dict[int, int]], None],
        interval_s: Callable[[], float] = lambda: INTERVAL_S,
    ) -> None:
        self._pids = pids
        self._interval_s = interval_s
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        last = -math.inf
        while not self._stop.wait(TIGHT_INTERVAL_S):
            now = time.monotonic()
            if now - last >= self._interval_s() - TIGHT_INTERVAL_S / 2:
                last = now
                self._report(footprints(self._pids()))
