"""Other settings for a running pool: what the plan says, and that only what changed is touched."""

from dataclasses import replace
from typing import Annotated, Any

import msgspec
import pytest
from pools import StartPool, wait_until
from test_budget import Machine, sized
from world import World, order

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.api.status import warnings
from forgellm.config import TakesEffect
from forgellm.errors import ConfigError, ModelUnloading
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Kept, Orders
from forgellm.supervisor.orders import reload_orders
from forgellm.supervisor.reload import AT_ONCE, IN_LOADS, diff, effective, takes_effect, touched
from forgellm.supervisor.slots import LoadOrder

S = WorkerState


def settings(**models: dict[str, Any]) -> Settings:
    return Settings(models={name: ModelConfig(source="echo", **config) for name, config in models.items()})


def test_the_plan_names_what_comes_changes_and_goes() -> None:
    old = settings(same={}, other={"ttl_s": 5.0}, gone={})
    new = settings(same={}, other={"ttl_s": 6.0, "pin": True}, fresh={"preload": True}, later={})
    plan = diff(old, new, {"gone": order("gone")}, {})
    assert plan.added == ("fresh", "later")
    assert plan.changed == {"other": ("ttl_s", "pin")}
    assert (plan.removed, plan.unloaded) == (("gone",), ("gone",))
    assert plan.loaded == ("fresh",)
    assert (plan.replaced, plan.at_once, plan.after_restart) == ((), (), ())


def test_settings_take_effect_at_once_or_wait_for_a_restart() -> None:
    old, new = Settings(), Settings(port=1, max_queue=3, cache_dir="/x", drain_timeout_s=9)
    plan = diff(old, new, {}, {})
    assert (plan.after_restart, plan.at_once) == (("port", "cache_dir"), ("max_queue", "drain_timeout_s"))
    found = effective(old, new)
    assert (found.port, found.cache_dir, found.max_queue) == (old.port, None, 3)


def test_a_plan_sorts_every_setting_by_when_it_counts() -> None:
    """One of each kind; what counts at once is in effective(), the rest is as it was."""
    assert takes_effect().keys() == set(Settings.__struct_fields__) > AT_ONCE > IN_LOADS
    assert {"max_queue", "max_batch"} <= AT_ONCE
    assert "max_batch" in IN_LOADS
    assert not {"max_queue", "port"} & IN_LOADS
    assert "port" not in AT_ONCE


@pytest.mark.parametrize("marks", [(), (TakesEffect.AT_ONCE, TakesEffect.AT_RESTART)])
def test_a_setting_must_say_when_it_counts(marks: tuple[TakesEffect, ...]) -> None:
    kind: Any = int
    for mark in marks:
        kind = Annotated[kind, mark]
    forgotten = msgspec.defstruct("Forgotten", [("fresh", kind, 0)])
    with pytest.raises(ConfigError, match="fresh must be marked"):
        takes_effect(forgotten)


def test_only_loaded_models_whose_settings_differ_are_looked_at() -> None:
    loaded = {name: order(name) for name in ("a", "b", "free")}
    assert touched(settings(a={}, b={}), settings(a={}, b={"pin": True}), loaded) == ("b",)
    assert touched(Settings(), Settings(max_batch=3), loaded) == ("a", "b", "free")


def reload(world: World, *orders: LoadOrder, removed: tuple[str, ...] = (), **knobs: Any) -> None:
    world.do(world.pool.reload(Settings(spare=False, **knobs), 0, orders, world.now, removed=removed))


def test_policy_counts_at_once_and_touches_no_worker() -> None:
    world = World()
    life = world.loaded()
    world.loaded("other")
    before = len(world.effects)
    reload(world, order(ttl_s=50.0))
    assert world.model().ttl_s == 50.0
    assert world.effects[before:] == []
    world.wait(51)
    assert world.commands(life)[-1] == "Unload"
    assert world.model("other").state is S.READY


def test_changed_options_replace_the_worker_while_it_serves() -> None:
    world = World()
    old = world.loaded()
    other = world.loaded("other")
    running = world.ask()
    world.token(old, running)
    reload(world, order(context_length=7))
    new = world.alive[-1]
    assert world.model().state is S.READY
    world.ready(new)
    world.say(old, ((running, "", (), None, "abort", None, None),))
    world.leave(old)
    assert world.resumed(running) == [(old, ()), (new, (1,))]
    assert world.model().context_length == 7
    assert [worker.life for worker in world.model("other").workers] == [other]


def test_an_idle_worker_serves_until_its_successor_is_ready_and_stays_if_that_fails() -> None:
    world = World()
    old = world.loaded()
    reload(world, order(context_length=7))
    assert world.life_of(world.ask()) == old
    world.fail_load(world.alive[-1])
    assert [worker.life for worker in world.model().workers] == [old]
    world.wait(1000)
    assert world.alive == [old]
    reload(world, order(context_length=8))
    assert len(world.alive) == 2, "other settings are another try"


def test_without_room_the_requests_wait_for_the_same_place() -> None:
    world = World()
    old = world.loaded()
    running = world.ask()
    world.pool._budget.has_room = lambda order: False  # type: ignore[method-assign]
    reload(world, order(context_length=7))
    world.say(old, ((running, "", (), None, "abort", None, None),))
    world.leave(old)
    (new,) = world.alive
    world.ready(new)
    assert world.resumed(running) == [(old, ()), (new, ())]


def test_a_removed_model_finishes_what_it_has_and_goes() -> None:
    world = World()
    life = world.loaded()
    running = world.ask()
    reload(world, removed=("m", "nobody"))
    assert isinstance(world.news(world.ask()), ModelUnloading)
    world.wait(1000)
    world.token(life, running, finish="stop")
    world.wait(0)
    assert world.commands(life)[-1] == "Unload"
    world.leave(life)
    assert world.pool.status().models == ()


def test_a_removed_model_goes_in_the_tick_that_ends_its_last_request() -> None:
    """Or the supervisor's loop would be woken at once for it."""
    world = World()
    world.load()
    waiting = world.ask(queue_s=20.0)
    reload(world, removed=("m",), hello_timeout_s=100)
    world.wait(20)
    assert world.news(waiting).code == "queue_timeout"
    assert world.worker().state is S.STOPPING
    assert world.pool.deadline() > world.now


def test_a_removed_model_that_is_loaded_again_stays() -> None:
    world = World()
    world.loaded()
    running = world.ask()
    reload(world, removed=("m",))
    world.load(ticket="again")
    world.abort(running)
    world.wait(1000)
    assert world.model().state is S.READY
    assert world.life_of(world.ask())


def test_other_files_under_the_same_name_replace_the_model() -> None:
    world = World()
    old = world.loaded()
    world.loaded("current")
    changed = order()
    reload(world, LoadOrder(source=changed.source.__class__(name="m", kind="echo", path="/x"), options=changed.options))
    assert world.commands(old)[-1] == "Unload"
    world.leave(old)
    assert world.model().state is S.STARTING
    assert world.pool.status().current == "current"


def other_files(weights: int) -> LoadOrder:
    wanted = sized("m", weights)
    return replace(wanted, source=replace(wanted.source, path="/new"))


def reloaded(machine: Machine, wanted: LoadOrder) -> None:
    settings = Settings(spare=False, memory_soft_limit=1.0)
    machine.do(machine.pool.reload(settings, 100, [wanted], machine.now, stale=["m"]))


def crowded() -> tuple[Machine, int]:
    """A model of 30 bytes, whose settings now name files of 70, beside a pinned one of 50, in a budget of 100."""
    machine = Machine()
    machine.hold("pinned", 50, pin=True)
    life = machine.hold("m", 30)
    machine.on_demand["m"] = other_files(70)
    reloaded(machine, other_files(70))
    return machine, life


def test_other_files_that_do_not_fit_leave_the_model_as_it_is_and_the_status_says_why() -> None:
    machine, life = crowded()
    why = machine.model().outdated
    assert why is not None
    assert why.startswith("m needs ")
    assert "(pinned)" in why
    assert [effect for effect in machine.effects if isinstance(effect, Kept)] == [Kept("m", why)]
    assert (machine.model().state, machine.model().error, machine.model().path) == (S.READY, None, None)
    assert machine.life_of(machine.ask()) == life
    assert machine.pool.orders().outdated == ("m",)
    assert warnings(machine.model()) == [f"outdated: its settings name other files, which were not loaded: {why}"]


@pytest.mark.parametrize("wanted", [sized("m", 30, ttl_s=9.0), other_files(40)], ids=["the old files", "smaller ones"])
def test_a_later_reload_that_can_be_followed_is(wanted: LoadOrder) -> None:
    machine, life = crowded()
    reloaded(machine, wanted)
    if wanted.source.path:
        machine.leave(life)
    assert machine.model().outdated is None
    assert (machine.model().ttl_s, machine.model().path) == (wanted.ttl_s, wanted.source.path)
    assert machine.pool.orders().outdated == ()


def test_a_model_that_could_not_follow_its_settings_comes_back_from_an_eviction_as_they_say() -> None:
    machine, life = crowded()
    machine.unload("pinned", force=True)
    machine.leave(machine.alive[0])
    machine.order("big", 90)
    machine.leave(life)
    machine.ready(machine.alive[0])
    machine.ask()
    machine.leave(machine.alive[0])
    assert machine.model().path == "/new"


def test_a_reload_tries_those_again_that_could_not_follow_the_last_one() -> None:
    """Though nothing differs in the file: the memory may be free now."""
    now = settings(m={"ttl_s": 5.0}, other={})
    loaded = {"m": order(), "other": order("other"), "gone": order("gone")}
    _, orders = reload_orders(now, now, 1 << 30, Orders(loaded, ("m", "gone")))
    assert [each.source.name for each in orders] == ["m"]


def test_what_is_gone_meanwhile_is_left_alone() -> None:
    world = World()
    reload(world, order("nobody"))
    assert world.effects == []


def test_limits_and_queues_go_by_the_new_settings() -> None:
    world = World()
    world.loaded(max_batch=1)
    reload(world, max_queue=1, queue_timeout_s=5)
    world.ask()
    waiting, refused = world.ask(), world.ask()
    assert world.news(refused).code == "queue_full"
    world.wait(5)
    assert world.news(waiting).code == "queue_timeout"


@pytest.mark.process
def test_a_pool_goes_over_to_other_settings_and_streams_go_on(start_pool: StartPool) -> None:
    """What is wrong in a file is told, and changes nothing."""
    pool = start_pool(e={"tokens_per_s": 60.0}, other={})
    pool.load("e")
    pool.load("other", ttl_s=500)
    text = " ".join(map(str, range(100)))
    generation = pool.generate("e", text)
    found = next(generation).text
    lives = {model.name: model.workers[0].life for model in pool.status().models}
    old, models = pool.settings, pool.settings.models
    broken = {**models, "broken": ModelConfig(source="/nowhere", preload=True)}
    with pytest.raises(ConfigError, match=r"models\.broken: .*nowhere"):
        pool.reload(_with(old, models=broken, max_queue=7))
    assert pool.settings == old
    changed = ModelConfig(source="echo", options=models["e"].options, context_length=1000, pin=True)
    wanted = _with(old, models={"e": changed, "fresh": ModelConfig(source="echo", preload=True)}, port=1)
    plan = pool.reload(wanted, dry_run=True)
    assert pool.settings == old
    assert pool.reload(wanted) == plan
    assert plan.changed == {"e": ("context_length", "pin")}
    assert (plan.replaced, plan.unloaded, plan.loaded) == (("e",), ("other",), ("fresh",))
    assert plan.after_restart == ("port",)
    wait_until(lambda: _life(pool, "e") not in {None, lives["e"]} and len(_workers(pool, "e")) == 1)
    assert found + generation.result().text == text
    wait_until(lambda: {model.name for model in pool.status().models} == {"e", "fresh"})
    model = pool.status().model("e")
    assert model is not None
    assert (model.context_length, model.pin) == (1000, True)
    with pytest.raises(ConfigError, match="came from no file"):
        pool.reload()


def _with(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, **changes)


def _workers(pool: Supervisor, name: str) -> tuple[Any, ...]:
    model = pool.status().model(name)
    return model.workers if model else ()


def _life(pool: Supervisor, name: str) -> int | None:
    return next((worker.life for worker in _workers(pool, name)), None)
