"""The counts of what happened, from the effects of the pure pool."""

import signal
from typing import Any

import pytest
from world import World

from forgellm.messages import Hello, Imported, Prefill, Request, RequestFailed, Usage
from forgellm.supervisor.counts import Distribution, ModelCounts
from forgellm.supervisor.effects import Effect
from forgellm.supervisor.tally import Tally


class Counted(World):
    """A world whose effects a tally sees, as the supervisor's thread shows them to it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tally = Tally()

    def do(self, effects: Any) -> list[Effect]:
        found = super().do(effects)
        self.tally.take(found, self.now)
        return found

    def ask(self, model: str = "m", request_id: str | None = None, **timeouts: float) -> str:
        name = request_id or f"asked-{self.now}"
        self.tally.asked(Request(request_id=name, model=model, prompt="x"), self.now)
        return super().ask(model, name, **timeouts)

    def counts(self, model: str = "m") -> ModelCounts:
        found = self.tally.counts(self.now).model(model)
        assert found is not None
        return found


@pytest.fixture
def world() -> Counted:
    return Counted()


def values(found: Distribution) -> dict[float, int]:
    """How many values fell at most at each bound, for the bounds that have some."""
    bounds = [*found.bounds, float("inf")]
    return {bound: count for bound, count in zip(bounds, found.counts, strict=True) if count}


def test_a_request_counts_its_waits_and_its_tokens(world):
    """Two seconds to the first token, then half a second to each of the next."""
    life = world.loaded()
    request = world.ask()
    world.now += 2
    world.token(life, request)
    world.now += 0.5
    world.token(life, request)
    world.now += 0.5
    world.say(
        life, ((request, "t", (1,), None, "stop", Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4), None),)
    )
    counts = world.counts()
    assert values(counts.first_token) == {2.5: 1}
    assert values(counts.between_tokens) == {0.5: 2}
    assert values(counts.request) == {5.0: 1}
    assert (counts.request.total, counts.between_tokens.total) == (3.0, 1.0)
    assert (counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens) == (9, 4, 3)
    assert counts.finished == {"stop": 1}


def test_the_wait_for_a_place_is_counted_apart(world):
    life = world.loaded(max_batch=1)
    first = world.ask(request_id="first")
    world.ask(request_id="second")
    world.now += 4
    world.token(life, first, finish="stop")
    assert values(world.counts().queue) == {0.001: 1, 5.0: 1}


def test_a_replay_is_counted_and_its_pause_is_a_wait_between_tokens(world):
    life = world.loaded()
    request = world.ask()
    world.token(life, request)
    world.die(life)
    world.now += 3
    world.ready(world.alive[-1])
    world.token(world.alive[-1], request)
    counts = world.counts()
    assert (counts.replays, counts.deaths) == (1, {"killed": 1})
    assert values(counts.between_tokens) == {5.0: 1}
    assert values(counts.queue) == {0.001: 1}


def test_a_quarantined_request_is_counted_as_such_and_by_its_code(world):
    world.loaded()
    world.ask()
    for _ in range(2):
        world.die(world.alive[-1], code=-signal.SIGSEGV)
        world.ready(world.alive[-1])
    counts = world.counts()
    assert (counts.quarantined, counts.errors) == (1, {"request_crashes_worker": 1})
    assert counts.deaths == {"signal": 2}


def test_names_that_nobody_loaded_count_as_one(world):
    """Else every request could add a time series."""
    world.loaded()
    for name in ("x", "y", "z"):
        world.ask(name, request_id=name)
    assert [model.model for model in world.tally.counts(world.now).models] == ["m", ""]
    assert world.counts("").errors == {"model_not_loaded": 3}


def test_an_aborted_request_counts_by_its_finish_reason(world):
    world.loaded(max_batch=1)
    world.ask(request_id="first")
    world.ask(request_id="second")
    world.abort("second")
    assert world.counts().finished == {"abort": 1}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (-signal.SIGKILL, "killed"),
        (-signal.SIGTERM, "killed"),
        (-signal.SIGSEGV, "signal"),
        (0, "exit"),
        (1, "exit"),
    ],
)
def test_a_death_is_counted_by_what_its_exit_code_says(world, code, cause):
    world.die(world.loaded(), code=code)
    assert world.counts().deaths == {cause: 1}


def test_a_load_that_fails_is_no_mystery(world):
    world.load()
    world.fail_load(world.alive[-1])
    assert world.counts().deaths == {"load_error": 1}


def test_a_load_that_takes_too_long_is_a_timeout():
    world = Counted(load_timeout_s=5)
    world.load()
    world.say(world.alive[-1], Hello(1), Imported())
    world.wait(6)
    world.die(world.alive[-1])
    assert world.counts().deaths == {"timeout": 1}


def test_a_hang_is_counted_as_one(world):
    life = world.loaded()
    world.pool._life.condemn(life, "it made no step", world.now)
    world.die(life)
    assert world.counts().deaths == {"hang": 1}


def test_an_unload_is_no_death_and_no_eviction(world):
    life = world.loaded()
    world.unload()
    world.leave(life)
    counts = world.counts()
    assert (counts.deaths, counts.evictions) == ({}, {})


def test_an_idle_model_that_is_unloaded_counts_as_evicted(world):
    world.loaded(ttl_s=10)
    world.wait(11)
    assert world.counts().evictions == {"idle": 1}


def test_the_time_from_order_to_ready_is_a_load(world):
    world.load()
    world.now += 7
    world.ready(world.alive[-1])
    assert values(world.counts().load) == {10.0: 1}


def test_how_long_requests_have_seen_no_progress(world):
    """Tokens and pieces of prefill are progress; so is having nothing to do."""
    life = world.loaded()
    world.now += 100
    assert world.counts().waiting_s == 0
    request = world.ask()
    world.now += 20
    assert world.counts().waiting_s == 20
    world.say(life, Prefill(request, 5, 10))
    world.now += 3
    world.say(life, Prefill(request, 5, 10))
    assert world.counts().waiting_s == 3
    world.token(life, request)
    world.now += 2
    assert world.counts().waiting_s == 2
    world.say(life, RequestFailed(request, "generation_failed", "it broke"))
    assert world.counts().waiting_s == 0


def test_what_has_ended_is_forgotten(world):
    life = world.loaded()
    for number in range(5):
        world.token(life, world.ask(request_id=f"r{number}"), finish="stop")
    assert world.tally._asked == {}
