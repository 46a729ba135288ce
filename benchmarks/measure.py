"""What one run of N requests gave, and how contenders are compared. Knows nothing of what it measures."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: tokens made in all, from the first submit to the last token, and the time to each first token."""

    tokens: int
    wall_s: float
    first_token_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def first_s(self) -> float:
        """Median over the requests of the run."""
        return statistics.median(self.first_token_s)


Contender = Callable[[list[str], int], Sample]
"""Answers all prompts at once, with so many tokens each."""


def alternate(contenders: dict[str, Contender], requests: int, tokens: int, rounds: int) -> dict[str, list[Sample]]:
    """`rounds` runs of each contender in turn, so that a slow minute of the machine hits all of them alike.

    In one round all answer the same prompts: answers that end early make a batch smaller. The order turns each round.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        asked = prompts(requests)
        for name in order:
            samples[name].append(contenders[name](asked, tokens))
        order = order[1:] + order[:1]
    return samples


def median_ratio(values: Iterable[float], base: Iterable[float]) -> float:
    """Median over the rounds of each value to that of the base in the same round."""
    return statistics.median(ratios(values, base))


def ratios(values: Iterable[float], base: Iterable[float]) -> list[float]:
    """Of each round: the value to that of the base."""
    return [value / other for value, other in zip(values, base, strict=True)]


_asked = 0


def prompts(count: int) -> list[str]:
    """Prompts of about 30 tokens which nobody has seen before: each starts with a number of its own."""
    global _asked  # noqa: PLW0603 - one counter for the whole run is the point
    _asked += count
    return [
        f"{number}. Write a long story about a lighthouse keeper, a storm and a lost ship, with many details."
        for number in range(_asked - count, _asked)
    ]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def wait_until(is_done: Callable[[], bool], timeout_s: float, pause_s: float = 0.01) -> float:
    """Seconds until is_done(); TimeoutError after timeout_s."""
    started = time.monotonic()
    while not is_done():
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"not done after {timeout_s} s")
        time.sleep(pause_s)
    return time.monotonic() - started
