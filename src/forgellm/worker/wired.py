"""Keep mlx-lm from asking the system to wire more memory than this worker's own share.

Knows no model. mlx-lm sets the wired limit to the whole recommended working set, for every generator; several workers
together then ask for several times the RAM, and macOS has been reported to panic (mlx#3186, mlx-lm#883).
"""

from collections.abc import Callable
from typing import Any

_MARK = "_forgellm_clamps"


def clamp_wired_limit(mx: Any, budget_bytes: int) -> None:
    """Replace `mx.set_wired_limit` by one that asks for at most `budget_bytes`. A second call sets a new budget.

    Does nothing where mlx has no such function. The limit still only matters on Metal.
    """
    current: Callable[[int], int] | None = getattr(mx, "set_wired_limit", None)
    if current is None:
        return
    original: Callable[[int], int] = getattr(current, _MARK, current)

    def set_wired_limit(limit: int) -> int:
        return original(min(limit, budget_bytes))

    setattr(set_wired_limit, _MARK, original)
    mx.set_wired_limit = set_wired_limit
