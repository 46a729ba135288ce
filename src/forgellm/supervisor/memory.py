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


def cgroup_limit_bytes(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float:
    """The lowest memory.max of this process's cgroup (v2) and those above it; infinite where there is none."""
    limits = [_text(folder / "memory.max").strip() for folder in _cgroups(root, own)]
    return min((int(limit) for limit in limits if limit.isdigit()), default=math.inf)


def oom_kills(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """How many processes the kernel has killed for memory in this process's cgroup (v2); 0 where it does not say."""
    for folder in _cgroups(root, own):
        for line in _text(folder / "memory.events").splitlines():
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
        return "the worker was killed by the system: out of memory (oom_kill in the cgroup's memory.events)"


def _cgroups(root: Path, own: Path) -> Iterator[Path]:
    """The folder of this process's cgroup, then those above it."""
    path = next((line[3:] for line in _text(own).splitlines() if line.startswith("0::/")), None)
    folder = root / path.lstrip("/") if path is not None else root.parent / "none"
    while folder.is_relative_to(root):
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
