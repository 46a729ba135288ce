"""What tests of real pools share."""

from collections.abc import Callable

from forgellm import Supervisor
from waiting import DEADLINE_S, wait_until

__all__ = ["DEADLINE_S", "StartPool", "wait_until"]

StartPool = Callable[..., Supervisor]
