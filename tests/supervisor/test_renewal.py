"""Workers that are replaced as planned while they are busy: their requests go on, and nobody notices."""

from typing import Any

from world import World

from forgellm.messages import Load
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Announce, Send

S = WorkerState


def busy(count: int = 2, **knobs: Any) -> tuple[World, int, str]:
    """A worker that has served enough and runs one request more, of which one token was delivered."""
    world = World(**{"recycle_after_requests": 1, **knobs})
    old = world.loaded(max_batch=count)
    one, two = world.ask(), world.ask()
    world.token(old, two)
    world.token(old, one, finish="stop")
    return world, old, two


def let_go(world: World, life: int, request_id: str) -> None:
    """A worker that was told to abort a request does so."""
    assert world.commands(life)[-1] == "Abort"
    world.say(life, ((request_id, "", (), None, "abort", None, None),))


def test_a_busy_worker_is_recycled_by_a_successor_that_takes_its_requests_over() -> None:
    world, old, running = busy()
    new = world.alive[-1]
    assert [worker.state for worker in world.model().workers] == [S.READY, S.STARTING]
    world.token(old, running)
    world.ready(new)
    assert world.worker().state is S.DRAINING
    let_go(world, old, running)
    assert world.resumed(running) == [(old, ()), (new, (1, 1))]
    assert world.commands(old)[-1] == "Unload"
    world.leave(old)
    assert [worker.life for worker in world.model().workers] == [new]
    world.token(new, running, finish="stop")
    assert [chunk[4] for chunk in world.delivered(running)] == [None, None, "stop"]


def test_who_follows_the_moves_sees_that_a_failed_successor_is_gone() -> None:
    """So that the next one in its place begins where it ended."""
    world, _, _ = busy()
    world.fail_load(world.alive[-1])
    moves = [effect for effect in world.effects if isinstance(effect, Announce) and effect.worker == "m#2"]
    assert [move.new for move in moves] == [S.STARTING, S.LOADING, S.FAILED, S.STOPPED]
    assert [worker.name for worker in world.model().workers] == ["m#1"]


def test_requests_that_come_meanwhile_are_served_by_whoever_is_ready() -> None:
    world, old, _ = busy(count=3)
    meanwhile = world.ask()
    assert world.life_of(meanwhile) == old
    new = world.alive[-1]
    world.ready(new)
    assert world.life_of(world.ask()) == new


def test_only_one_worker_of_a_model_is_replaced_at_a_time() -> None:
    world = World(recycle_after_requests=1)
    world.loaded(replicas=3)
    lives = list(world.alive)
    running = [world.ask() for _ in range(6)]
    homes = {request: world.life_of(request) for request in running}
    for request, life in list(homes.items())[:3]:
        assert life is not None
        world.token(life, request, finish="stop")
    assert len(world.alive) == len(lives) + 1
    first = world.model().workers[0].life
    world.ready(world.alive[-1])
    let_go(world, first, next(request for request in running[3:] if homes[request] == first))
    assert len(world.alive) == len(lives) + 1
    assert "Unload" in world.commands(first)
    world.leave(first)
    assert len(world.alive) == len(lives) + 1, "the next one's successor"


def test_without_room_for_a_successor_the_other_replicas_take_the_requests() -> None:
    world = World(recycle_after_requests=1)
    world.loaded(replicas=2)
    world.pool._budget.has_room = lambda order: False  # type: ignore[method-assign]
    first, second = world.alive
    one, two, three = world.ask(), world.ask(), world.ask()
    assert [world.life_of(request) for request in (one, two, three)] == [first, second, first]
    world.token(first, one, finish="stop")
    let_go(world, first, three)
    assert world.resumed(three) == [(first, ()), (second, ())]
    world.leave(first)
    assert world.worker().state is S.STARTING
    assert world.worker().restarts == 0


def test_without_room_and_without_another_replica_a_busy_worker_is_left_until_it_is_idle() -> None:
    world = World(recycle_after_requests=1)
    old = world.loaded()
    world.pool._budget.has_room = lambda order: False  # type: ignore[method-assign]
    one, two = world.ask(), world.ask()
    world.token(old, one, finish="stop")
    assert "Abort" not in world.commands(old)
    world.token(old, two, finish="stop")
    assert world.commands(old)[-1] == "Unload"


def test_if_the_successor_cannot_load_the_old_worker_stays_and_is_not_tried_again() -> None:
    world, old, running = busy()
    new = world.alive[-1]
    world.fail_load(new)
    (kept,) = world.model().workers
    assert (kept.life, kept.state) == (old, S.READY)
    assert "its successor failed: its files are broken" in kept.reason
    world.token(old, running, finish="stop")
    world.wait(1000)
    assert world.alive == [old]


def test_a_worker_that_dies_before_its_successor_is_ready_goes_on_there() -> None:
    world, old, running = busy()
    new = world.alive[-1]
    world.die(old)
    respawned = world.alive[-1]
    world.ready(new)
    assert world.resumed(running)[-1] == (new, (1,))
    assert world.signals(respawned), "two would be one too many"
    world.die(respawned)
    assert [worker.life for worker in world.model().workers] == [new]


def test_an_unload_takes_the_successor_along() -> None:
    world, old, running = busy()
    new = world.alive[-1]
    world.unload(force=True)
    world.ready(new)
    world.die(new)
    world.token(old, running, finish="stop")
    world.leave(old)
    assert world.pool.status().models == ()


def test_the_successor_is_loaded_as_the_old_one_was() -> None:
    world, old, _ = busy()
    loads = [e.command for e in world.effects if isinstance(e, Send) and isinstance(e.command, Load)]
    assert loads[0] == loads[1]
    assert world.worker().life == old
