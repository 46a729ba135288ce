"""When a worker that died may start again, and what its end says. Pure arithmetic; must not look at slots."""

import re
import signal
from dataclasses import dataclass, replace
from typing import Literal

from forgellm.messages import EngineOptions
from forgellm.supervisor.slots import DeathCause

Fault = Literal["worker", "request", "outside"]
"""Who is to blame for a death: the crash budget counts only the worker's own."""

_FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM})
"""Exit codes of workers that somebody else ended, unless the supervisor or the kernel did."""

_GPU_OOM = re.compile(
    r"^.*\[metal(?:::\w+)?\].*(?:Insufficient Memory|GPU Timeout|Resource limit \(\d+\)).*$",
    re.IGNORECASE | re.MULTILINE,
)
"""What MLX says on stderr before it aborts: no memory for a command buffer, a GPU that stood still meanwhile, more
buffers than Metal allows a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """At once after the first death in the window, then exponential backoff, then failed: supervisord's and gunicorn's
    practice. A failed worker may be tried again (half-open) after the longest backoff."""

    initial_s: float
    max_s: float
    budget: int
    window_s: float

    def recent(self, deaths: list[float], now: float) -> list[float]:
        """The deaths that still count."""
        return [death for death in deaths if now - death < self.window_s]

    def delay_s(self, deaths: list[float]) -> float:
        """Seconds to wait after the last of these recent deaths."""
        return 0.0 if len(deaths) <= 1 else min(self.max_s, self.initial_s * 2.0 ** (len(deaths) - 2))


def cause_of_exit(exit_code: int) -> DeathCause:
    """The cause of a death that the supervisor did not bring about, as far as its exit code says."""
    if exit_code in _FROM_OUTSIDE:
        return "killed"
    return "signal" if exit_code < 0 else "exit"


def gpu_oom_line(exit_code: int, log: str) -> str:
    """The line of a dead worker's log that says that the GPU's memory ran out, or ""."""
    found = None if exit_code == 0 or exit_code in _FROM_OUTSIDE else _GPU_OOM.search(log)
    return found[0].strip() if found else ""


def shrunk(options: EngineOptions) -> EngineOptions:
    """The same with a smaller footprint: half the requests at once, no prefix cache."""
    return replace(options, max_batch=max(1, options.max_batch // 2), prefix_cache_bytes=0)
