"""What one API key used of its rate and its concurrency. Knows no HTTP, and no clock: it counts with the time given."""

import threading

from forgellm.api.errors import RateLimited, TooManyAtOnce
from forgellm.keys import Key

_SOON_S = 1.0


class Meter:
    """A token bucket, and the number of answers that are being given. Thread-safe; `now` is monotonic, in seconds.

    The bucket holds the requests of one minute, is full at first, and fills up evenly.
    """

    def __init__(self, now: float) -> None:
        self._lock = threading.Lock()
        self._tokens = float("inf")
        self._filled_at = now
        self._inside = 0

    def enter(self, key: Key, now: float) -> None:
        """Count one request in, until leave(). Raises TooManyAtOnce or RateLimited, and then counts nothing."""
        with self._lock:
            if key.concurrency is not None and self._inside >= key.concurrency:
                message = f"the API key {key.name} may have {key.concurrency} requests answered at once"
                raise TooManyAtOnce(message, retry_after_s=_SOON_S)
            if key.rate_per_min is not None:
                self._take(key, key.rate_per_min, now)
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1

    def _take(self, key: Key, rate_per_min: int, now: float) -> None:
        per_s = rate_per_min / 60
        tokens = min(float(rate_per_min), self._tokens + (now - self._filled_at) * per_s)
        self._filled_at = now
        self._tokens = tokens
        if tokens < 1:
            message = f"the API key {key.name} may send {rate_per_min} requests per minute"
            raise RateLimited(message, retry_after_s=(1 - tokens) / per_s)
        self._tokens -= 1
