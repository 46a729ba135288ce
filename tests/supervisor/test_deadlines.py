"""Each request's own deadlines, with the time passed in."""

import math

import pytest
from world import World

from forgellm.config import ModelConfig, Settings
from forgellm.errors import QueueTimeout, RequestTimeout
from forgellm.messages import Hello, Imported, Prefill, RequestFailed, Timeouts
from forgellm.states import WorkerState
from forgellm.supervisor import deadlines
from forgellm.supervisor.slots import Limits


def ask(world: World, request_id: str = "r", **timeouts: float) -> str:
    return world.ask("m", request_id, **timeouts)


def test_a_requests_limit_wins_over_the_models_and_the_models_over_the_settings() -> None:
    settings = deadlines.of(Settings(queue_timeout_s=1, first_token_timeout_s=2, token_timeout_s=3))
    model = deadlines.of(ModelConfig(source="echo", first_token_timeout_s=20, token_timeout_s=0))
    found = deadlines.limits(Timeouts(queue_s=100), model, settings)
    assert found == Limits(queue_s=100, first_token_s=20, token_s=math.inf, total_s=math.inf)


def test_nothing_that_runs_is_ended_by_default() -> None:
    """A long prompt on a CPU takes its time."""
    world = World()
    world.loaded()
    request = world.ask()
    world.wait(1e6)
    assert world.delivered(request) == []
    assert world.pool.deadline() == math.inf


@pytest.mark.parametrize(
    ("limit", "tokens", "words"),
    [
        ({"first_token_s": 5.0}, 0, "no first token within 5 s"),
        ({"token_s": 5.0}, 1, "no further token within 5 s"),
        ({"total_s": 5.0}, 0, "not finished within 5 s"),
        ({"total_s": 5.0}, 1, "not finished within 5 s"),
        ({"total_s": 5.0, "token_s": 6.0, "first_token_s": 6.0}, 1, "not finished within 5 s"),
        ({"total_s": 6.0, "token_s": 5.0, "first_token_s": 1.0}, 1, "no further token within 5 s"),
    ],
)
def test_a_request_that_is_late_ends_with_one_error_and_its_worker_is_told(
    limit: dict[str, float], tokens: int, words: str
) -> None:
    world = World()
    life = world.loaded()
    request = ask(world, **limit)
    for _ in range(tokens):
        world.token(life, request)
    world.wait(4.99)
    assert len(world.delivered(request)) == tokens
    world.wait(0.02)
    *_, error = world.delivered(request)
    assert isinstance(error, RequestTimeout)
    assert words in str(error)
    assert world.commands(life) == ["Load", "Generate", "Abort"]
    world.wait(1000)
    assert len(world.delivered(request)) == tokens + 1


def test_each_token_winds_the_clock_up_again() -> None:
    world = World()
    life = world.loaded()
    request = ask(world, token_s=5.0, first_token_s=1.0)
    for _ in range(100):
        world.token(life, request)
        world.wait(4.9)
    assert len(world.delivered(request)) == 100
    world.wait(0.2)
    assert isinstance(world.delivered(request)[-1], RequestTimeout)


def test_the_place_of_a_late_request_is_free_when_its_worker_says_so() -> None:
    """Until then it still computes; and what it says meanwhile reaches nobody."""
    world = World()
    life = world.loaded(max_batch=1)
    late = ask(world, total_s=5.0)
    world.wait(5)
    waiting = world.ask()
    world.token(life, late)
    world.say(life, Prefill(late, 1, 2))
    assert world.resumed(waiting) == []
    world.token(life, late, "", "abort")
    assert world.resumed(waiting) == [(life, ())]
    assert [type(news) for news in world.delivered(late)] == [RequestTimeout]


def test_a_late_request_that_fails_or_is_aborted_or_dies_gets_no_second_ending() -> None:
    world = World()
    life = world.loaded()
    ends = [ask(world, name, total_s=5.0) for name in ("fails", "aborted", "dies")]
    world.wait(5)
    world.say(life, RequestFailed("fails", "generation_failed", "late"))
    world.abort("aborted")
    world.token(life, "aborted", "", "abort")
    world.die(life)
    world.ready(world.alive[-1])
    assert [[type(news) for news in world.delivered(request)] for request in ends] == [[RequestTimeout]] * 3
    assert [world.resumed(request) for request in ends] == [[(life, ())]] * 3
    assert world.model().in_flight == world.model().queue_depth == 0


def test_a_late_request_does_not_move_with_the_others() -> None:
    world = World()
    world.loaded(replicas=2)
    requests = [ask(world, "late", total_s=5.0), ask(world, "late too", total_s=5.0)]
    world.wait(5)
    world.load(replicas=1)
    for request in requests:
        world.token(world.life_of(request) or 0, request, "", "abort")
    assert [[type(news) for news in world.delivered(request)] for request in requests] == [[RequestTimeout]] * 2
    assert world.model().in_flight == world.model().queue_depth == 0


def test_waiting_for_a_place_has_its_own_limit_per_request() -> None:
    world = World(queue_timeout_s=300)
    world.loaded(max_batch=1)
    ask(world, "runs")
    ask(world, "impatient", queue_s=2.0)
    ask(world, "patient", queue_s=0.0)
    world.ask(request_id="usual")
    world.wait(2)
    assert isinstance(world.news("impatient"), QueueTimeout)
    assert "waited 2 s" in str(world.news("impatient"))
    world.wait(298)
    assert isinstance(world.news("usual"), QueueTimeout)
    world.wait(1e6)
    assert world.delivered("patient") == []


def test_waits_for_a_worker_add_up_over_deaths_until_a_token_comes() -> None:
    """Or a worker that is killed again and again would keep its clients for ever. A long prefill is no wait."""
    world = World(queue_timeout_s=100)
    world.loaded()
    stuck, steady = ask(world, "stuck"), ask(world, "steady")
    for _ in range(3):
        world.wait(500)
        respawn_takes(world, 30)
        world.token(world.alive[0], steady)
    assert world.resumed(stuck)[-1] == (world.alive[0], ())
    world.wait(500)
    respawn_takes(world, 30)
    assert isinstance(world.news(stuck), QueueTimeout)
    assert world.resumed(steady)[-1] == (world.alive[0], (1, 1, 1))


def respawn_takes(world: World, seconds: float) -> None:
    """A kill from outside, and the next life's load."""
    world.die(world.alive[0])
    world.say(world.alive[0], Hello(2), Imported())
    world.wait(seconds)
    world.ready(world.alive[0])


def test_the_whole_time_counts_from_the_call_and_goes_on_through_a_death() -> None:
    world = World()
    life = world.loaded(max_batch=1)
    request = ask(world, total_s=10.0, token_s=4.0)
    world.token(life, request)
    world.wait(3)
    world.die(life)
    world.wait(5)  # the next life loads: nothing is late between two tokens while nobody has the request
    assert len(world.delivered(request)) == 1
    assert world.worker().state is WorkerState.STARTING
    world.wait(2)
    assert "not finished within 10 s" in str(world.delivered(request)[-1])


def test_the_next_deadline_is_the_nearest_and_forgets_who_has_ended() -> None:
    world = World()
    life = world.loaded()
    for number in range(5):
        ask(world, f"r{number}", total_s=10.0 + number)
    assert world.pool.deadline() == world.now + 10
    for number in range(4):
        world.token(life, f"r{number}", finish="stop")
    assert world.pool.deadline() == world.now + 14
    world.token(life, "r4", finish="stop")
    assert world.pool.deadline() == math.inf
