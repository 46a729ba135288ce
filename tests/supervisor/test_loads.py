"""Models that requests have loaded, keep, and let go of; with the time passed in."""

import math
import signal

import pytest
from test_budget import Machine, sized
from world import World, order

from forgellm.config import Settings
from forgellm.errors import InsufficientMemory, ModelInvalid, ModelNotLoaded, ModelUnloading, QueueTimeout
from forgellm.messages import EngineOptions
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Loaded, Unloaded

S = WorkerState


class Demanding(Machine):
    """A budget of 100 bytes, in which requests load "a", "b" and "c", of 60 bytes each, and "small" of 20."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{"max_hold_off_s": 30.0, "drain_timeout_s": 10.0, **settings})
        options = EngineOptions(max_batch=2)
        self.on_demand = {name: sized(name, 60, options=options) for name in "abc"}
        self.on_demand["small"] = sized("small", 20)

    def get_ready(self, name: str) -> int:
        life = self.worker(name).life
        self.ready(life)
        return life

    def spawns(self) -> int:
        return sum(type(effect).__name__ == "Spawn" for effect in self.effects)


# On demand


def test_a_request_for_a_known_model_loads_it_and_waits_for_it() -> None:
    world = World()
    world.on_demand["m"] = order()
    request = world.ask()
    assert world.commands(1) == ["Load"]
    assert world.model().queue_depth == 1
    world.ready(1)
    assert world.life_of(request) == 1
    assert world.pool.status().current is None


def test_requests_that_come_meanwhile_wait_for_the_same_load() -> None:
    world = World()
    world.on_demand["m"] = order()
    requests = [world.ask() for _ in range(5)]
    assert world.alive == [1]
    world.ready(1)
    assert [world.life_of(request) for request in requests] == [1] * 5


def test_who_waits_for_a_load_waits_no_longer_than_in_any_queue() -> None:
    world = World(queue_timeout_s=30)
    world.on_demand["m"] = order()
    request = world.ask()
    world.wait(30)
    assert isinstance(world.news(request), QueueTimeout)


def test_a_load_on_demand_that_fails_gives_each_request_its_own_error() -> None:
    world = World()
    world.on_demand["m"] = order()
    requests = [world.ask(), world.ask()]
    world.fail_load(1)
    assert all(isinstance(world.news(request), ModelInvalid) for request in requests)
    assert isinstance(world.news(world.ask()), ModelInvalid), "not spawned again for each request"
    assert world.alive == []


@pytest.mark.parametrize("is_on_demand", [True, False])
def test_a_while_later_a_load_that_failed_is_tried_again_if_requests_may_load(is_on_demand: bool) -> None:
    world = World(backoff_max_s=30)
    world.load(on_demand=is_on_demand)
    world.fail_load(1)
    world.now += 31
    request = world.ask()
    assert bool(world.alive) == is_on_demand
    assert bool(world.delivered(request)) == (not is_on_demand)


def test_whoever_may_only_use_what_is_loaded_waits_for_a_load_and_begins_none() -> None:
    world = World(backoff_max_s=30)
    world.on_demand["m"] = order()
    early = world.ask(load_policy="preloaded")
    assert isinstance(world.news(early), ModelNotLoaded)
    assert world.alive == []
    world.ask()
    request = world.ask(load_policy="preloaded")
    world.ready(1)
    assert world.life_of(request) == 1


def test_whoever_may_only_use_what_is_loaded_brings_no_model_back() -> None:
    """Neither one that is being put away, nor one that was, nor one whose load failed a while ago."""
    world = World(backoff_max_s=30)
    world.loaded(ttl_s=10)
    world.wait(11)
    assert isinstance(world.news(world.ask(load_policy="preloaded")), ModelUnloading)
    world.leave(world.alive[0])
    assert isinstance(world.news(world.ask(load_policy="preloaded")), ModelNotLoaded)
    assert world.alive == []
    world.ask()
    world.fail_load(world.alive[0])
    world.now += 31
    assert isinstance(world.news(world.ask(load_policy="preloaded")), ModelInvalid)
    assert world.alive == []


def test_a_demand_evicts_idle_models_only() -> None:
    machine = Demanding()
    machine.hold("a", 60)
    machine.ask("b")
    assert machine.states() == {"a": S.STOPPING, "b": S.WAITING}
    machine.leave(machine.worker("a").life)
    machine.get_ready("b")
    assert machine.states() == {"b": S.READY}


def test_a_demand_that_can_never_be_met_is_refused_at_once_with_the_numbers() -> None:
    machine = Demanding()
    machine.hold("pinned", 50, pin=True)
    error = machine.news(machine.ask("a"))
    assert isinstance(error, InsufficientMemory)
    assert "pinned 0 MB (pinned)" in str(error)
    assert machine.states() == {"pinned": S.READY}


def test_a_model_that_nobody_waits_for_any_more_is_not_loaded() -> None:
    machine = Demanding()
    life = machine.hold("a", 60)
    running = machine.ask("a")
    waiting = machine.ask("b")
    machine.abort(waiting)
    assert machine.states() == {"a": S.READY}
    waiting = machine.ask("b", queue_s=5.0)
    machine.wait(5)
    assert isinstance(machine.news(waiting), QueueTimeout)
    machine.ask("b")
    machine.drain("b", timeout_s=0)
    assert machine.states() == {"a": S.READY}
    machine.token(life, running, finish="stop")
    assert machine.states() == {"a": S.READY}


def test_an_unload_ends_what_waits_for_a_load_on_demand() -> None:
    machine = Demanding()
    machine.hold("a", 60)
    machine.ask("a")
    waiting = machine.ask("b")
    machine.unload("b")
    assert isinstance(machine.news(waiting), ModelUnloading)
    assert isinstance(machine.news("unload"), Unloaded)


def test_an_explicit_load_joins_one_on_demand() -> None:
    world = World()
    world.on_demand["m"] = order()
    request = world.ask()
    world.load()
    world.ready(1)
    assert isinstance(world.news("load"), Loaded)
    assert world.life_of(request) == 1


# Put away, and back


def test_an_evicted_model_comes_back_as_it_was_loaded() -> None:
    """With its adapter, prompt and limits: or another model would answer under its name."""
    machine = Demanding()
    machine.order("a", 60, system_prompt="be brief")
    machine.ready(1)
    machine.ask("b")
    machine.leave(1)
    machine.token(machine.get_ready("b"), machine.generates()[-1][1].request.request_id, finish="stop")
    machine.ask("a")
    assert machine.model("a").system_prompt == "be brief"
    assert machine.pool.status().put_away["a"] == "be brief"
    assert machine.pool.status().current == "a", "it is still the last one that a load asked for"


def test_one_that_was_unloaded_is_what_the_catalog_says() -> None:
    machine = Demanding()
    life = machine.hold("a", 60, system_prompt="be brief")
    machine.unload("a")
    machine.leave(life)
    machine.ask("a")
    assert machine.model("a").system_prompt is None


def test_one_that_requests_may_not_load_stays_away() -> None:
    machine = Machine()
    life = machine.hold("a", 60, on_demand=False)
    machine.order("b", 60)
    machine.leave(life)
    assert isinstance(machine.news(machine.ask("a")), ModelNotLoaded)


def test_a_request_for_a_model_that_is_being_evicted_waits_until_it_is_back() -> None:
    machine = Demanding()
    first = machine.hold("a", 60)
    for_b = machine.ask("b")
    late = machine.ask("a")
    machine.leave(first)
    assert machine.states() == {"b": S.STARTING, "a": S.WAITING}
    machine.token(machine.get_ready("b"), for_b, finish="stop")
    machine.leave(machine.worker("b").life)
    assert machine.life_of(late) is None
    assert machine.get_ready("a") == machine.life_of(late)


def test_a_load_of_a_model_that_is_being_put_away_brings_it_back_for_its_requests_too() -> None:
    world = World()
    life = world.loaded(ttl_s=10)
    world.wait(10)
    assert world.worker().state is S.STOPPING
    request = world.ask()
    world.load(ticket="again", ttl_s=10)
    world.leave(life)
    world.ready(world.alive[0])
    assert isinstance(world.news("again"), Loaded)
    assert world.life_of(request) == world.alive[0]


def test_another_load_under_its_name_refuses_what_waits_for_the_model_that_was_put_away() -> None:
    world = World()
    life = world.loaded(ttl_s=10)
    world.wait(10)
    request = world.ask()
    world.load(ticket="other", context_length=8)
    assert isinstance(world.news(request), ModelUnloading)
    world.leave(life)
    world.ready(world.alive[0])
    assert isinstance(world.news("other"), Loaded)


def test_an_unload_of_a_model_that_is_being_put_away_is_an_unload() -> None:
    world = World()
    life = world.loaded(ttl_s=10)
    world.wait(10)
    request = world.ask()
    world.unload()
    assert isinstance(world.news(request), ModelUnloading)
    world.leave(life)
    assert world.alive == []
    assert world.pool.status().current is None


# Keeping alive


def test_a_request_can_say_how_long_its_model_stays() -> None:
    world = World()
    life = world.loaded()
    world.token(life, world.ask(keep_alive_s=20.0), finish="stop")
    assert world.model().ttl_s == 20
    world.wait(19)
    assert world.worker().state is S.READY
    world.wait(1)
    assert world.worker().state is S.STOPPING


def test_kept_for_nothing_it_goes_when_its_last_request_has_ended() -> None:
    world = World()
    life = world.loaded()
    longer, last = world.ask(), world.ask(keep_alive_s=0.0)
    world.token(life, last, finish="stop")
    world.wait(5)
    assert world.worker().state is S.READY
    world.token(life, longer, finish="stop")
    world.wait(0)
    assert world.worker().state is S.STOPPING


def test_kept_for_ever_it_is_pinned_until_a_request_or_a_load_says_otherwise() -> None:
    world = World()
    life = world.loaded(ttl_s=5)
    world.token(life, world.ask(keep_alive_s=-1.0), finish="stop")
    world.wait(1000)
    assert world.model().pin
    world.token(life, world.ask(keep_alive_s=50.0), finish="stop")
    assert (world.model().pin, world.model().ttl_s) == (False, 50)
    world.load(ticket="again", ttl_s=5)
    assert world.model().ttl_s == 5


def test_a_request_does_not_unpin_what_the_configuration_pins() -> None:
    world = World()
    life = world.loaded(pin=True)
    world.token(life, world.ask(keep_alive_s=0.0), finish="stop")
    world.wait(100)
    assert world.worker().state is S.READY


# Respawns


def test_a_respawn_without_room_waits_and_starts_when_there_is_some() -> None:
    """Its load takes more than what it held: the transient. Somebody else may have that now."""
    machine = Machine()
    life = machine.hold("a", 60)
    machine.hold("b", 30)
    machine.measure(b=35)
    machine.die(life)
    assert machine.states() == {"a": S.WAITING, "b": S.READY}
    machine.wait(60)
    assert machine.states() == {"a": S.WAITING, "b": S.READY}, "nobody asks for it, so nobody goes for it"
    machine.measure(b=30)
    assert machine.states()["a"] is S.STARTING
    assert machine.worker("a").restarts == 1


def test_a_respawn_that_somebody_waits_for_has_idle_models_evicted_and_goes_on() -> None:
    machine = Machine()
    life = machine.hold("a", 60)
    other = machine.hold("b", 30)
    machine.measure(b=35)
    request = machine.ask("a")
    machine.token(life, request, "x")
    machine.die(life)
    assert machine.states() == {"a": S.WAITING, "b": S.STOPPING}
    machine.leave(other)
    machine.ready(machine.worker("a").life)
    assert machine.resumed(request)[-1] == (machine.worker("a").life, (1,))


def test_a_respawn_that_finds_no_room_at_all_waits_on_but_its_load_is_told() -> None:
    machine = Machine()
    machine.order("a", 30, replicas=2)
    machine.ready(machine.alive[0])
    machine.hold("b", 30, pin=True)
    machine.measure(b=60)
    machine.die(machine.worker("a").life, code=-signal.SIGSEGV)
    assert isinstance(machine.news("load a"), InsufficientMemory)
    assert machine.worker("a").state is S.WAITING
    machine.measure(b=30)
    assert machine.worker("a").state is S.STARTING


def test_a_respawn_after_a_backoff_is_admitted_too() -> None:
    machine = Machine(backoff_initial_s=1)
    machine.die(machine.hold("a", 60))
    machine.ready(machine.alive[0])
    machine.die(machine.alive[0])
    assert machine.states() == {"a": S.BACKOFF}
    machine.hold("b", 30)
    machine.measure(b=50)
    machine.wait(1)
    assert machine.states()["a"] is S.WAITING
    assert machine.pool.deadline() == math.inf


def test_a_model_that_was_put_away_comes_back_as_it_was_unless_its_settings_changed_since() -> None:
    for stale, found in (([], 7), (["m"], None)):
        world = World()
        world.loaded(ttl_s=10, context_length=7)
        world.on_demand["m"] = order()
        world.wait(11)
        world.leave(world.alive[0])
        world.do(world.pool.reload(Settings(spare=False), 0, [], world.now, stale=stale))
        world.ask()
        assert world.model().context_length == found


def test_the_orders_are_of_what_is_loaded_and_stays() -> None:
    world = World()
    world.loaded("a", ttl_s=5)
    world.load("b", ticket="b")
    world.unload("b")
    assert world.pool.orders().by_name == {"a": order("a", ttl_s=5)}


def test_a_successor_that_waits_for_room_holds_up_nobody() -> None:
    """It died at its start, and what it is to replace has grown meanwhile; nobody is evicted for it."""
    machine = Demanding()
    machine.hold("x", 40, options=EngineOptions(max_batch=1))
    machine.ask("x")
    machine.ask("x")
    changed = sized("x", 40, options=EngineOptions(max_batch=1, context_length=7))
    settings = Settings(spare=False, memory_soft_limit=1.0)
    machine.do(machine.pool.reload(settings, 100, [changed], machine.now))
    machine.measure(x=70)
    machine.die(machine.alive[-1])
    assert [worker.state for worker in machine.model("x").workers] == [S.READY, S.WAITING]
    machine.ask("small")
    assert machine.states()["small"] is S.STARTING
