"""What happened since the supervisor started, as numbers: the immutable picture that Tally draws. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many values fell where: `counts[i]` were at most `bounds[i]` and above the bound before it, and the last of
    `counts` were above every bound. `total` is the sum of all values."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCounts:
    """One model. Times in seconds: from a request's arrival to its first place in a worker (`queue`), to its first
    token, to its end (`request`); from token to token as they were delivered, pauses for replays included; from the
    order to start a worker to the worker being ready (`load`).

    `deaths` are the unasked ends of workers by cause (see effects.Died), `evictions` the unasked unloads by cause (see
    effects.Evicted). `waiting_s`: how long its requests have seen no progress (no token, no piece of prefill); 0 if
    none is under way."""

    model: str
    queue: Distribution
    first_token: Distribution
    between_tokens: Distribution
    request: Distribution
    load: Distribution
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    replays: int
    quarantined: int
    finished: Mapping[str, int] = field(default_factory=dict)  # by finish_reason
    errors: Mapping[str, int] = field(default_factory=dict)  # by code
    deaths: Mapping[str, int] = field(default_factory=dict)
    evictions: Mapping[str, int] = field(default_factory=dict)
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Every model that had a worker, and "" for requests that named none of them: a client cannot add models here."""

    models: tuple[ModelCounts, ...] = ()

    def model(self, name: str) -> ModelCounts | None:
        return next((model for model in self.models if model.model == name), None)
