"""What the system charges processes for, in bytes. The only use of psutil on workers; decides nothing."""

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping

import psutil

INTERVAL_S = 1.0
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


def footprints(pids: Mapping[int, int]) -> dict[int, int]:
    """Footprint by life, of {life: pid}; those that are gone are left out."""
    found = {life: footprint_bytes(pid) for life, pid in pids.items()}
    return {life: size for life, size in found.items() if size is not None}


class Sampler:
    """Measures the given processes once a second in a thread of its own: reading a large one takes milliseconds."""

    def __init__(self, pids: Callable[[], Mapping[int, int]], report: Callable[[dict[int, int]], None]) -> None:
        self._pids = pids
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._report(footprints(self._pids()))
