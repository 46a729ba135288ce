"""Draining on request: nothing new, what runs finishes or is aborted at the deadline, and the report says how many."""

from typing import Any

import pytest
from world import World, order

from forgellm.config import Settings
from forgellm.errors import Draining, ModelNotLoaded
from forgellm.supervisor.effects import Drained


def report(world: World, ticket: str = "drain") -> dict[str, Any]:
    """The counts that were not 0, and how long it took."""
    news = world.news(ticket)
    assert isinstance(news, Drained)
    found = {name: getattr(news, name) for name in ("finished", "moved", "aborted", "left", "took_s")}
    return {name: count for name, count in found.items() if count}


def test_a_drained_model_finishes_what_it_has_and_refuses_what_is_new() -> None:
    world = World()
    life = world.loaded(max_batch=1)
    running, queued = world.ask(), world.ask()
    world.drain("m")
    assert world.model().is_drained
    refused = world.news(world.ask())
    assert isinstance(refused, Draining)
    assert refused.retry_after_s
    assert world.delivered("drain") == []
    world.wait(2)
    world.token(life, running, finish="stop")
    world.token(life, queued, finish="stop")
    world.wait(0)
    assert report(world) == {"finished": 2, "took_s": 2}
    assert [worker.life for worker in world.model().workers] == [life], "it stays loaded"


def test_what_is_not_finished_at_the_deadline_is_aborted() -> None:
    world = World()
    life = world.loaded(max_batch=2)
    done, late, queued = world.ask(), world.ask(), world.ask()
    world.drain("m", timeout_s=10)
    world.token(life, done, finish="stop")
    world.abort(queued)
    world.token(life, queued, finish="abort")
    third = world.ask()
    assert isinstance(world.news(third), Draining)
    world.wait(10)
    assert world.commands(life)[-1] == "Abort"
    assert world.delivered("drain") == []
    world.token(life, late, finish="abort")
    world.wait(0)
    assert report(world) == {"finished": 2, "aborted": 1, "took_s": 10}


def test_a_queued_request_is_aborted_at_once_and_one_that_a_worker_keeps_is_left() -> None:
    world = World()
    world.loaded(max_batch=1)
    world.ask()
    queued = world.ask()
    world.drain("m", timeout_s=0)
    assert world.delivered(queued)[-1][4] == "abort"
    world.wait(4.9)
    assert world.delivered("drain") == []
    world.wait(0.1)
    assert report(world) == {"aborted": 1, "left": 1, "took_s": 5}


def test_requests_that_move_to_another_life_meanwhile_are_counted() -> None:
    world = World()
    life = world.loaded()
    running = world.ask()
    world.drain("m")
    world.die(life)
    world.ready(world.alive[-1])
    world.token(world.alive[-1], running, finish="stop")
    world.wait(0)
    assert report(world) == {"finished": 1, "moved": 1}


def test_a_drain_is_done_at_its_deadline_if_nothing_had_begun() -> None:
    world = World()
    world.load()
    queued = world.ask()
    world.drain("m", timeout_s=10)
    world.wait(10)
    assert world.news(queued)[4] == "abort"
    assert report(world) == {"aborted": 1, "took_s": 10}


def test_an_idle_model_is_drained_at_once_and_resumed_it_serves_again() -> None:
    world = World()
    life = world.loaded()
    world.drain("m")
    assert report(world) == {}
    assert isinstance(world.news(world.ask()), Draining)
    world.resume("m")
    assert world.life_of(world.ask()) == life


def test_a_drained_pool_takes_nothing_whatever_the_model_even_if_it_was_loaded_later() -> None:
    world = World()
    world.loaded("a")
    world.drain()
    world.loaded("b")
    for name in ("a", "b", "unknown"):
        assert isinstance(world.news(world.ask(name)), Draining)
    assert world.pool.status().is_drained
    assert world.model("b").is_drained
    world.resume()
    assert world.life_of(world.ask("a"))
    assert isinstance(world.news(world.ask("unknown")), ModelNotLoaded)


def test_a_drained_model_that_is_evicted_is_drained_when_it_comes_back() -> None:
    world = World()
    life = world.loaded(ttl_s=10)
    world.on_demand["m"] = order()
    world.drain("m")
    world.wait(11)
    world.leave(life)
    assert world.pool.status().models == ()
    assert isinstance(world.news(world.ask()), Draining), "no request has it loaded"
    world.loaded(ticket="again")
    assert world.model().is_drained
    assert isinstance(world.news(world.ask()), Draining)
    world.resume("m")
    assert not world.model().is_drained
    assert world.life_of(world.ask()) == world.alive[0]


def test_an_evicted_model_can_be_resumed_before_it_is_back() -> None:
    world = World()
    life = world.loaded(ttl_s=10)
    world.on_demand["m"] = order()
    world.drain("m")
    world.wait(11)
    world.leave(life)
    world.resume()
    world.ask()
    assert world.model().queue_depth == 1


@pytest.mark.parametrize("name", ["m", None])
def test_a_drained_model_that_was_unloaded_takes_requests_when_it_is_loaded_again(name: str | None) -> None:
    world = World()
    life = world.loaded()
    world.drain("m")
    world.unload(name)
    world.leave(life)
    again = world.loaded(ticket="again")
    assert world.life_of(world.ask()) == again


def test_a_drained_model_that_left_the_settings_and_came_back_takes_requests() -> None:
    world = World()
    life = world.loaded()
    world.drain("m")
    world.do(world.pool.reload(Settings(spare=False), 0, [], world.now, removed=["m"]))
    world.wait(1)
    world.leave(life)
    again = world.loaded(ticket="again")
    assert world.life_of(world.ask()) == again


def test_resuming_ends_a_drain_that_is_under_way() -> None:
    world = World()
    world.loaded()
    world.ask()
    world.drain("m")
    world.resume()
    assert report(world) == {"left": 1}


@pytest.mark.parametrize("other", [None, "m"])
def test_of_two_drains_each_has_its_own_report(other: str | None) -> None:
    world = World()
    life = world.loaded()
    running = world.ask()
    world.drain("m", "first", timeout_s=100)
    world.drain(other, "second", timeout_s=10)
    world.wait(10)
    world.token(life, running, finish="abort")
    world.wait(0)
    assert report(world, "second") == {"aborted": 1, "took_s": 10}
    assert report(world, "first") == {"finished": 1, "took_s": 10}


def test_a_model_that_is_not_loaded_cannot_be_drained() -> None:
    world = World()
    world.drain("m")
    assert isinstance(world.news("drain"), ModelNotLoaded)
