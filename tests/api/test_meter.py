"""One key's rate and concurrency, with the time passed in."""

import pytest

from forgellm.api.errors import RateLimited, TooManyAtOnce
from forgellm.api.meter import Meter
from forgellm.keys import Key


def key(rate_per_min: int | None = None, concurrency: int | None = None) -> Key:
    return Key(
        id="k1",
        name="laptop",
        sha256="0" * 64,
        scopes=("infer",),
        created=0.0,
        rate_per_min=rate_per_min,
        concurrency=concurrency,
    )


def test_a_key_without_limits_has_none():
    meter = Meter(0.0)
    for _ in range(1000):
        meter.enter(key(), 0.0)


def test_a_rate_refills_evenly_and_says_when_the_next_request_may_come():
    meter = Meter(10.0)
    for _ in range(6):
        meter.enter(key(rate_per_min=6), 10.0)
    with pytest.raises(RateLimited, match="laptop may send 6") as caught:
        meter.enter(key(rate_per_min=6), 14.0)
    assert caught.value.retry_after_s == pytest.approx(6.0)
    meter.enter(key(rate_per_min=6), 20.0)
    with pytest.raises(RateLimited):
        meter.enter(key(rate_per_min=6), 20.0)


def test_an_idle_hour_saves_up_no_more_than_a_minute():
    meter = Meter(0.0)
    for _ in range(3):
        meter.enter(key(rate_per_min=3), 3600.0)
    with pytest.raises(RateLimited):
        meter.enter(key(rate_per_min=3), 3600.0)


def test_a_place_is_free_again_when_its_answer_ends():
    meter = Meter(0.0)
    meter.enter(key(concurrency=1), 0.0)
    with pytest.raises(TooManyAtOnce) as caught:
        meter.enter(key(concurrency=1), 0.0)
    assert caught.value.retry_after_s
    meter.leave()
    meter.enter(key(concurrency=1), 0.0)


def test_what_is_refused_costs_nothing():
    meter = Meter(0.0)
    limits = key(rate_per_min=2, concurrency=1)
    meter.enter(limits, 0.0)
    for _ in range(5):
        with pytest.raises(TooManyAtOnce):
            meter.enter(limits, 0.0)
    meter.leave()
    meter.enter(limits, 0.0)
    meter.leave()
    for _ in range(2):
        with pytest.raises(RateLimited):
            meter.enter(limits, 0.0)


def test_a_limit_that_is_lowered_counts_at_once():
    meter = Meter(0.0)
    meter.enter(key(rate_per_min=100), 0.0)
    meter.enter(key(rate_per_min=1), 0.0)
    with pytest.raises(RateLimited):
        meter.enter(key(rate_per_min=1), 0.0)
