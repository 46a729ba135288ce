"""When a worker that died may start again, and what its exit code says. Pure arithmetic; must not look at slots."""

import signal
from dataclasses import dataclass

from forgellm.supervisor.slots import DeathCause


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

    def delay_s(self, deaths: list[float]) -> float | None:
        """Seconds to wait after the last of these recent deaths; None: the budget is spent."""
        if len(deaths) >= self.budget:
            return None
        return 0.0 if len(deaths) <= 1 else min(self.max_s, self.initial_s * 2.0 ** (len(deaths) - 2))


def cause_of_exit(exit_code: int) -> DeathCause:
    """The cause of a death that the supervisor did not bring about."""
    if exit_code == -signal.SIGKILL:
        return "killed"
    return "signal" if exit_code < 0 else "exit"
