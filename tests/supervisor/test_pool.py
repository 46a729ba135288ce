"""The pool's decisions, with the time passed in."""

import math
import signal

import pytest
from world import World

from forgellm.config import ModelConfig
from forgellm.errors import (
    ModelFailed,
    ModelInvalid,
    ModelNotLoaded,
    ModelUnloading,
    PoolFull,
    QueueFull,
    QueueTimeout,
    RequestCrashesWorker,
    ShuttingDown,
    WorkerDied,
)
from forgellm.messages import Generate, Hello, Imported, LoadFailed, Loading, Memory, Prefill, RequestFailed, Usage
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Loaded, Send, Spawn, Unloaded
from forgellm.supervisor.slots import DeathCause

S = WorkerState
UNTIL_LOADING = (Hello(1), Imported())


# Loading


def test_a_load_spawns_a_worker_and_is_answered_when_it_is_ready() -> None:
    world = World()
    world.load()
    (life,) = world.alive
    assert world.worker().state is S.STARTING
    assert world.commands(life) == ["Load"]
    world.now += 2
    world.ready(life)
    loaded = world.news("load")
    assert loaded == Loaded(model="m", adapter_path=None, loading_time_s=2.0, already_loaded=False)
    assert world.worker().state is S.READY
    assert world.worker().memory.mlx_active_bytes == 7


def test_progress_of_a_load_is_in_the_picture() -> None:
    world = World()
    world.load()
    world.say(1, Loading(0.4, "reading weights"))
    assert (world.worker().progress, world.worker().stage) == (0.4, "reading weights")


def test_chaos_068_two_loads_of_the_same_model_share_one_worker() -> None:
    world = World()
    world.load(ticket="one")
    world.load(ticket="two")
    assert len(world.alive) == 1
    world.ready(1)
    assert isinstance(world.news("one"), Loaded)
    assert isinstance(world.news("two"), Loaded)


def test_loading_a_loaded_model_again_is_answered_at_once() -> None:
    world = World()
    world.loaded()
    world.load(ticket="again")
    assert world.news("again").already_loaded
    assert len(world.alive) == 1


def test_other_options_under_the_same_name_replace_the_model() -> None:
    """Or a status would name one model while another one's weights answer."""
    world = World()
    old = world.loaded()
    world.load(ticket="other", context_length=32)
    assert world.worker().state is S.STOPPING
    assert world.delivered("other") == []
    world.leave(old)
    (new,) = world.alive
    assert new != old
    world.ready(new)
    assert isinstance(world.news("other"), Loaded)


def test_of_two_replacing_loads_the_later_one_wins_and_the_other_hears_of_it() -> None:
    world = World()
    old = world.loaded()
    world.load(ticket="first", context_length=32)
    world.load(ticket="second", context_length=16)
    assert isinstance(world.news("first"), ModelUnloading)
    world.leave(old)
    world.ready(world.alive[0])
    assert isinstance(world.news("second"), Loaded)


def test_replicas_are_workers_of_their_own_and_a_load_waits_for_all_of_them() -> None:
    world = World()
    world.load(replicas=2)
    world.ready(1)
    assert world.delivered("load") == []
    world.ready(2)
    assert isinstance(world.news("load"), Loaded)
    assert [worker.name for worker in world.model().workers] == ["m#1", "m#2"]


def test_fewer_replicas_stop_the_surplus_worker_only() -> None:
    world = World()
    world.loaded(replicas=2)
    world.load(ticket="fewer", replicas=1)
    assert world.commands(2)[-1] == "Unload"
    assert isinstance(world.news("fewer"), Loaded)
    world.leave(2)
    assert [worker.name for worker in world.model().workers] == ["m#1"]


def test_the_streams_of_a_surplus_worker_move_to_the_others() -> None:
    world = World()
    world.loaded(replicas=2)
    requests = [world.ask(), world.ask()]
    moving = next(request for request in requests if world.life_of(request) == 2)
    world.token(2, moving, "a")
    world.load(ticket="fewer", replicas=1)
    assert world.commands(2)[-1] == "Abort"
    world.token(2, moving, "b")
    world.token(2, moving, "held back", "abort")
    assert world.commands(2)[-1] == "Unload"
    assert world.resumed(moving) == [(2, ()), (1, (1, 1))]
    world.token(1, moving, "c", "stop")
    assert [(chunk[1], chunk[4]) for chunk in world.delivered(moving)] == [("a", None), ("b", None), ("c", "stop")]


def test_a_moving_stream_that_ends_by_itself_or_is_aborted_is_over() -> None:
    world = World()
    world.loaded(replicas=2)
    requests = [world.ask() for _ in range(4)]
    ends, aborted = (request for request in requests if world.life_of(request) == 2)
    world.load(ticket="fewer", replicas=1)
    world.token(2, ends, "a", "stop")
    world.abort(aborted)
    world.token(2, aborted, "", "abort")
    assert [world.news(ends)[4], world.news(aborted)[4]] == ["stop", "abort"]
    assert world.worker(replica=2).state is S.STOPPING


def test_replicas_that_are_asked_for_again_while_the_old_ones_leave_get_numbers_of_their_own() -> None:
    """Or two workers would have one name."""
    world = World()
    world.loaded(replicas=3)
    world.load(ticket="fewer", replicas=1)
    world.leave(2)
    world.load(ticket="more", replicas=3)
    assert sorted(worker.name for worker in world.model().workers) == ["m#1", "m#2", "m#3", "m#4"]
    world.leave(3)
    for life in (4, 5):
        world.ready(life)
    assert isinstance(world.news("more"), Loaded)
    assert all(worker.state is S.READY for worker in world.model().workers)


def test_a_broken_model_fails_its_load_and_is_not_tried_again() -> None:
    world = World()
    world.load()
    world.fail_load(1)
    assert isinstance(world.news("load"), ModelInvalid)
    assert world.model().error_code == "model_invalid"
    world.wait(3600)
    assert world.alive == []


def test_a_failed_model_can_be_loaded_again() -> None:
    world = World()
    world.load()
    world.fail_load(1)
    world.load(ticket="again")
    world.ready(world.alive[0])
    assert isinstance(world.news("again"), Loaded)
    assert world.model().error is None


def test_a_worker_that_dies_before_its_first_word_is_tried_once_more_then_failed() -> None:
    world = World()
    world.load()
    world.die(1)
    assert world.alive == [2]
    world.die(2)
    assert isinstance(world.news("load"), WorkerDied)
    assert world.worker().state is S.FAILED


def test_a_worker_that_never_says_hello_is_killed_and_tried_once_more() -> None:
    world = World(hello_timeout_s=10)
    world.load()
    world.wait(10)
    assert world.signals(1) == [signal.SIGKILL]
    world.die(1)
    world.wait(10)
    world.die(2)
    assert "took too long at starting" in str(world.news("load"))


def test_a_death_in_the_first_load_fails_it() -> None:
    world = World()
    world.load()
    world.say(1, *UNTIL_LOADING, Loading(0.5, "reading weights"))
    world.die(1)
    assert isinstance(world.news("load"), WorkerDied)
    assert world.alive == []


def test_a_load_that_takes_too_long_is_killed_and_says_so() -> None:
    world = World(load_timeout_s=60)
    world.load()
    world.say(1, *UNTIL_LOADING)
    world.wait(60)
    assert world.signals(1) == [signal.SIGKILL]
    world.die(1)
    assert "took too long at loading" in str(world.news("load"))


def test_what_a_killed_worker_said_before_it_died_counts_no_more() -> None:
    world = World(load_timeout_s=60)
    world.load()
    world.say(1, *UNTIL_LOADING)
    request = world.ask()
    world.wait(60)
    world.ready(1)
    assert world.worker().state is S.LOADING
    assert world.resumed(request) == []


# Requests


def test_a_request_for_an_unknown_model_is_refused() -> None:
    world = World()
    assert isinstance(world.news(world.ask()), ModelNotLoaded)


def test_a_request_runs_on_the_least_loaded_replica() -> None:
    world = World()
    world.loaded(replicas=2)
    lives = [world.life_of(world.ask()) for _ in range(4)]
    assert sorted(lives) == [1, 1, 2, 2]


def test_tokens_reach_the_request_and_its_end_frees_the_place() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.token(life, request, "a")
    assert world.worker().in_flight == 1
    world.token(life, request, "b", "stop")
    assert [chunk[1] for chunk in world.delivered(request)] == ["a", "b"]
    assert world.worker().in_flight == 0
    world.token(life, request, "late")
    assert len(world.delivered(request)) == 2


def test_requests_wait_while_the_model_loads_and_run_in_order() -> None:
    world = World()
    world.load()
    first, second = world.ask(), world.ask()
    assert world.model().queue_depth == 2
    world.ready(1)
    assert (world.life_of(first), world.life_of(second)) == (1, 1)
    sends = [e.command for e in world.effects if isinstance(e, Send)]
    assert [c.request.request_id for c in sends if isinstance(c, Generate)] == [first, second]


def test_a_full_worker_leaves_requests_in_the_queue_until_a_place_is_free() -> None:
    world = World()
    life = world.loaded(max_batch=1)
    first, second = world.ask(), world.ask()
    assert world.life_of(second) is None
    world.token(life, first, finish="stop")
    assert world.life_of(second) == life


def test_beyond_the_queue_requests_are_refused_and_told_when_to_come_back() -> None:
    world = World(max_queue=1)
    world.load()
    world.ask()
    error = world.news(world.ask())
    assert isinstance(error, QueueFull)
    assert error.retry_after_s


def test_a_refused_request_is_told_the_measured_pace() -> None:
    world = World(max_queue=1)
    life = world.loaded(max_batch=1)
    running = world.ask()
    for _ in range(5):
        queued = world.ask()
        world.now += 12
        world.token(life, running, finish="stop")
        running = queued
    world.ask()
    assert 11 < world.news(world.ask()).retry_after_s < 13


def test_all_models_together_have_a_bound_as_well() -> None:
    world = World(max_queue=10, max_queue_total=2)
    world.load("a", ticket="a")
    world.load("b", ticket="b")
    world.ask("a")
    world.ask("b")
    assert isinstance(world.news(world.ask("a")), PoolFull)


def how_many_wait(world: World, *clients: str, model: str = "m") -> list[int]:
    """Each client in turn asks until all are refused; how many requests of each then wait."""
    found = dict.fromkeys(clients, 0)
    eager = list(clients)
    while eager:
        for client in list(eager):
            if world.delivered(world.ask(model, client=client)):
                eager.remove(client)
            else:
                found[client] += 1
    return list(found.values())


@pytest.mark.parametrize(
    ("clients", "shares"),
    [
        (("",), [12]),
        (("ann",), [6]),
        (("ann", "bob"), [4, 4]),
        (("ann", "bob", "cy"), [3, 3, 3]),
        (("ann", ""), [4, 8]),
    ],
    ids=["no keys", "a lone key", "two", "three", "the daemon's owner beside a key"],
)
def test_a_key_may_have_as_many_waiting_as_places_are_free(clients: tuple[str, ...], shares: list[int]) -> None:
    world = World(max_queue=12)
    world.load()
    assert how_many_wait(world, *clients) == shares


def test_who_comes_later_finds_room_beside_keys_that_have_all_they_can_get() -> None:
    world = World(max_queue=12)
    world.load()
    assert [how_many_wait(world, name)[0] for name in ("ann", "bob", "cy", "dee")] == [6, 3, 2, 1]
    error = world.news(world.ask(client="eve"))
    assert isinstance(error, QueueFull)
    assert "12 requests wait for m already" in error.message


def test_a_key_at_its_share_is_told_so_and_has_room_again_when_one_of_its_requests_runs() -> None:
    world = World(max_queue=4)
    life = world.loaded(max_batch=1)
    running = world.ask(client="ann")
    assert how_many_wait(world, "ann") == [2]
    error = world.news(world.ask(client="ann"))
    assert isinstance(error, QueueFull)
    assert "this API key has 2 requests waiting, its share of the queue for m" in error.message
    assert error.retry_after_s
    world.token(life, running, finish="stop")
    assert how_many_wait(world, "ann") == [1]


def test_a_key_has_a_share_of_all_queues_together_as_well() -> None:
    world = World(max_queue=10, max_queue_total=4)
    world.load("a", ticket="a")
    world.load("b", ticket="b")
    world.ask("a", client="ann")
    world.ask("b", client="ann")
    error = world.news(world.ask("b", client="ann"))
    assert isinstance(error, QueueFull)
    assert "this API key has 2 requests waiting, its share of the queues of all models" in error.message
    assert how_many_wait(world, "bob", model="b") == [1]


def test_a_request_does_not_wait_for_ever() -> None:
    world = World(queue_timeout_s=30)
    world.load()
    request = world.ask()
    world.wait(29)
    assert world.delivered(request) == []
    world.wait(1)
    assert isinstance(world.news(request), QueueTimeout)
    assert world.model().queue_depth == 0


def test_an_aborted_request_whose_worker_dies_first_is_ended_and_not_run_again() -> None:
    world = World()
    life = world.loaded(max_batch=2)
    aborted, other = world.ask(), world.ask()
    world.token(life, aborted)
    world.abort(aborted)
    world.die(life)
    *_, last = world.delivered(aborted)
    assert last[4:6] == ("abort", Usage(prompt_tokens=0, completion_tokens=1))
    (heir,) = world.alive
    world.ready(heir)
    assert world.resumed(other) == [(life, ()), (heir, ())]
    assert world.resumed(aborted) == [(life, ())]
    assert [news[4] for news in world.delivered(aborted)] == [None, "abort"]


def test_an_aborted_request_does_not_move_with_the_others() -> None:
    """Its worker must go before it has let go of it."""
    world = World()
    world.loaded(replicas=2)
    requests = [world.ask() for _ in range(4)]
    aborted, moving = (request for request in requests if world.life_of(request) == 2)
    world.abort(aborted)
    world.load(ticket="fewer", replicas=1)
    world.token(2, moving, "", "abort")
    world.token(2, aborted, "", "abort")
    assert world.news(aborted)[4] == "abort"
    assert (len(world.resumed(aborted)), len(world.resumed(moving))) == (1, 2)


def test_aborting_a_queued_request_ends_it_here_and_a_running_one_in_its_worker() -> None:
    world = World()
    life = world.loaded(max_batch=1)
    running, queued = world.ask(), world.ask()
    world.abort(queued)
    assert world.news(queued)[4] == "abort"
    world.abort(running)
    assert world.commands(life)[-1] == "Abort"
    assert world.delivered(running) == []
    world.abort("unknown")
    world.token(life, running, "", "abort")
    assert world.news(running)[4] == "abort"


def test_one_request_can_fail_and_the_worker_goes_on() -> None:
    world = World()
    life = world.loaded()
    bad, good = world.ask(), world.ask()
    world.say(life, RequestFailed(bad, "context_length_exceeded", "too long", "prompt"))
    assert world.news(bad).code == "context_length_exceeded"
    assert world.news(bad).field == "prompt"
    world.token(life, good, finish="stop")
    assert world.news(good)[4] == "stop"


def test_prefill_progress_reaches_its_request_only_while_it_runs() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.say(life, Prefill(request, 1, 2))
    world.token(life, request, finish="stop")
    world.say(life, Prefill(request, 2, 2))
    assert world.delivered(request)[0] == Prefill(request, 1, 2)
    assert len(world.delivered(request)) == 2


# Deaths


def test_a_killed_worker_is_respawned_at_once_and_its_requests_go_on_where_they_were() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.token(life, request, "a")
    world.token(life, request, "b")
    world.die(life)
    (new,) = world.alive
    assert world.worker().restarts == 1
    assert world.model().queue_depth == 1
    world.ready(new)
    assert world.resumed(request) == [(life, ()), (new, (1, 1))]
    world.token(new, request, "c", "stop")
    assert [chunk[1] for chunk in world.delivered(request)] == ["a", "b", "c"]


def test_what_a_dead_worker_ran_is_first_in_line_and_in_its_old_order() -> None:
    world = World()
    life = world.loaded(max_batch=2)
    first, second, queued = world.ask(), world.ask(), world.ask()
    world.die(life)
    (new,) = world.alive
    world.ready(new)
    world.token(new, first)
    world.token(new, second, finish="stop")
    order = [c.request.request_id for life, c in world.generates() if life == new]
    assert order == [first, second, queued]


def test_a_request_goes_on_at_another_replica_without_waiting_for_the_respawn() -> None:
    world = World()
    world.loaded(replicas=2)
    requests = [world.ask(), world.ask()]
    lost = next(request for request in requests if world.life_of(request) == 1)
    world.die(1)
    assert world.resumed(lost) == [(1, ()), (2, ())]


def test_suspects_are_run_again_one_at_a_time_until_a_token_clears_them() -> None:
    """Or a poisoned request and its neighbours would look the same at the second death."""
    world = World()
    life = world.loaded()
    requests = [world.ask() for _ in range(3)]
    world.die(life, code=-signal.SIGABRT)
    (new,) = world.alive
    world.ready(new)
    assert [c.request.request_id for life, c in world.generates() if life == new] == requests[:1]
    innocent = world.ask()
    assert world.life_of(innocent) == new
    world.token(new, requests[0])
    assert [c.request.request_id for life, c in world.generates() if life == new] == [
        requests[0],
        innocent,
        requests[1],
    ]


def test_a_place_that_was_kept_for_a_suspect_is_free_when_the_suspect_is_aborted_or_late() -> None:
    for end in ("abort", "timeout"):
        world = World(queue_timeout_s=30)
        life = world.loaded(max_batch=2)
        first, second = world.ask(), world.ask()
        world.die(life, code=-signal.SIGSEGV)
        (new,) = world.alive
        world.ready(new)
        world.wait(20)
        innocent = world.ask()
        assert world.life_of(first) == life
        assert world.resumed(first)[-1] == (new, ())
        assert world.life_of(innocent) is None
        if end == "abort":
            world.abort(second)
        else:
            world.wait(15)
        assert world.life_of(innocent) == new


def test_after_kills_from_outside_all_go_on_together_however_many_there_were() -> None:
    """One after the other is slow: each client waits for the prompts of all before it to be read again."""
    world = World(backoff_max_s=0)
    world.loaded()
    requests = [world.ask() for _ in range(3)]
    for _ in range(50):
        world.die(world.alive[0], code=-signal.SIGKILL)
        world.ready(world.alive[0])
        assert world.worker().in_flight == 3
    assert [world.delivered(request) for request in requests] == [[], [], []]


def test_a_poisoned_request_is_quarantined_at_its_second_crash_and_its_neighbours_finish() -> None:
    world = World()
    life = world.loaded()
    good, poison, other = world.ask(), world.ask(), world.ask()
    world.die(life, "the worker aborted", code=-signal.SIGABRT)
    (second,) = world.alive
    world.ready(second)
    world.token(second, good)
    world.die(second, "the worker aborted", code=-signal.SIGABRT)
    assert isinstance(world.news(poison), RequestCrashesWorker)
    (third,) = world.alive
    world.ready(third)
    world.token(third, good, finish="stop")
    world.token(third, other, finish="stop")
    assert [chunk[4] for chunk in world.delivered(good)] == [None, "stop"]
    assert [chunk[4] for chunk in world.delivered(other)] == ["stop"]


def test_chaos_022_poisoned_requests_do_not_use_up_the_crash_budget() -> None:
    """Or one client with a bad prompt could take a model from all others."""
    world = World(crash_budget=3)
    world.loaded()
    for _ in range(5):
        poison = world.ask()
        for _ in range(2):
            world.die(world.alive[0], code=-signal.SIGABRT)
            world.ready(world.alive[0])
        assert isinstance(world.news(poison), RequestCrashesWorker)
    assert world.worker().state is S.READY


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM])
def test_a_kill_from_outside_neither_blames_a_suspect_nor_clears_it(code: int) -> None:
    world = World(backoff_max_s=0)
    world.loaded()
    suspect = world.ask()
    world.crash(world.alive[0])
    for _ in range(20):
        world.ready(world.alive[0])
        world.die(world.alive[0], code=code)
    world.ready(world.alive[0])
    assert world.delivered(suspect) == []
    world.crash(world.alive[0])
    assert isinstance(world.news(suspect), RequestCrashesWorker)


def test_a_request_handed_from_one_killed_worker_to_the_next_is_not_to_blame() -> None:
    """Eight workers killed in the same moment: each dies under what the one before it left."""
    world = World()
    world.loaded(replicas=8)
    request = world.ask()
    for life in list(world.alive):
        world.die(life, code=-signal.SIGKILL)
    world.ready(world.alive[0])
    world.token(world.alive[0], request, finish="stop")
    assert world.news(request)[4] == "stop"


@pytest.mark.parametrize(("cause", "is_to_blame"), [("oom", True), ("killed", False)])
def test_a_request_that_runs_the_machine_out_of_memory_is_to_blame_if_the_kernel_says_so(
    cause: DeathCause, is_to_blame: bool
) -> None:
    world = World()
    world.loaded()
    request = world.ask()
    for _ in range(2):
        world.die(world.alive[0], code=-signal.SIGKILL, cause=cause)
        world.wait(1)
        world.ready(world.alive[0])
    assert any(isinstance(news, RequestCrashesWorker) for news in world.delivered(request)) is is_to_blame


def test_a_request_that_goes_on_between_deaths_is_never_to_blame() -> None:
    world = World(crash_budget=100, backoff_max_s=0)
    world.loaded()
    request = world.ask()
    for _ in range(50):
        world.token(world.alive[0], request)
        world.die(world.alive[0], code=-signal.SIGSEGV)
        world.ready(world.alive[0])
    world.token(world.alive[0], request, finish="stop")
    assert world.delivered(request)[-1][4] == "stop"


def test_an_abort_reaches_a_request_that_waits_for_its_next_life() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.token(life, request)
    world.die(life)
    world.abort(request)
    assert world.delivered(request)[-1][4] == "abort"
    assert world.delivered(request)[-1][5].completion_tokens == 1
    world.ready(world.alive[0])
    assert len(world.resumed(request)) == 1


@pytest.mark.parametrize("code", [0, 1, 66])
def test_chaos_013_an_exit_without_a_farewell_is_a_crash_whatever_its_code(code: int) -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.token(life, request)
    world.die(life, "the worker exited without a word", code=code)
    (new,) = world.alive
    assert world.worker().restarts == 1
    world.ready(new)
    assert world.resumed(request)[-1] == (new, (1,))


def test_requests_of_a_model_that_gave_up_get_one_error_each() -> None:
    world = World(crash_budget=1)
    life = world.loaded()
    requests = [world.ask(), world.ask()]
    world.crash(life)
    assert all(isinstance(world.news(request), ModelFailed) for request in requests)


def test_chaos_035_events_of_an_older_life_are_dropped() -> None:
    world = World()
    old = world.loaded()
    request = world.ask()
    world.die(old)
    assert world.token(old, request, "ghost") == []
    assert world.say(old, Memory(1, 1)) == []


def test_chaos_021_deaths_in_a_row_wait_longer_each_time_then_the_model_has_failed() -> None:
    world = World(crash_budget=4, backoff_initial_s=1, backoff_max_s=30)
    world.loaded()
    waits = []
    for _ in range(3):
        world.crash(world.alive[0])
        waits.append(max(0.0, world.pool.deadline() - world.now) if not world.alive else 0.0)
        world.wait(waits[-1])
        world.ready(world.alive[0])
    assert waits == [0.0, 1.0, 2.0]
    world.crash(world.alive[0])
    assert world.worker().state is S.FAILED
    assert "4 deaths" in (world.model().error or "")
    assert "SIGSEGV" in (world.model().error or "")
    assert isinstance(world.news(world.ask()), ModelFailed)


def test_deaths_far_apart_do_not_add_up() -> None:
    world = World(crash_budget=2, crash_window_s=300)
    world.loaded()
    for _ in range(5):
        world.crash(world.alive[0])
        world.ready(world.alive[0])
        world.now += 301
    assert world.worker().state is S.READY


def test_chaos_021_a_failed_model_is_tried_once_more_when_it_is_wanted_a_while_later() -> None:
    world = World(crash_budget=1, backoff_max_s=30)
    world.crash(world.loaded())
    world.now += 31
    request = world.ask()
    world.ready(world.alive[0])
    assert world.life_of(request) == world.alive[0]


def test_kills_from_outside_wait_longer_each_time_too_but_fail_no_model() -> None:
    """Whoever kills, or runs out of memory without a word, is not stopped by an error for all who wait."""
    world = World(crash_budget=2, backoff_initial_s=1, backoff_max_s=30, crash_window_s=300)
    world.loaded()
    request, waits = world.ask(), []
    for _ in range(9):
        world.die(world.alive[0])
        waits.append(max(0.0, world.pool.deadline() - world.now) if not world.alive else 0.0)
        world.wait(waits[-1])
        world.ready(world.alive[0])
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    assert world.resumed(request)[-1] == (world.alive[0], ())
    world.crash(world.alive[0])
    world.wait(30)
    world.ready(world.alive[0])
    world.token(world.alive[0], request)
    world.crash(world.alive[0])
    assert world.worker().state is S.FAILED
    assert "2 deaths" in (world.model().error or "")


def test_requests_queued_for_a_model_that_fails_are_told_why() -> None:
    world = World()
    world.load()
    request = world.ask()
    world.fail_load(1)
    assert isinstance(world.news(request), ModelInvalid)
    assert "broken" in str(world.news(request))


def test_files_that_broke_while_loaded_fail_the_respawn_for_good() -> None:
    world = World()
    world.die(world.loaded())
    world.fail_load(world.alive[0])
    assert world.worker().state is S.FAILED
    assert world.model().error_code == "model_invalid"


# Unloading


def test_an_idle_model_is_asked_to_unload_and_the_ticket_hears_when_it_is_gone() -> None:
    world = World()
    life = world.loaded()
    world.do(world.pool.memory({life: 5000, 99: 1}, world.now))
    world.unload()
    assert world.commands(life)[-1] == "Unload"
    assert world.delivered("unload") == []
    world.leave(life)
    assert world.news("unload") == Unloaded(model="m", was_loaded=True, freed_bytes=5000, forced=False)
    assert world.pool.status().models == ()
    assert world.pool.status().current is None


def test_unloading_what_is_not_loaded_says_so() -> None:
    world = World()
    world.unload()
    world.unload(None, "nothing")
    assert not world.news("unload").was_loaded
    assert world.news("nothing").model is None


def test_chaos_068_running_requests_finish_before_the_unload_and_new_ones_are_refused() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.unload()
    assert world.worker().state is S.DRAINING
    assert isinstance(world.news(world.ask()), ModelUnloading)
    world.token(life, request, finish="stop")
    assert world.worker().state is S.STOPPING
    world.leave(life)
    assert world.news("unload").was_loaded


def test_a_drain_that_takes_too_long_aborts_what_is_left() -> None:
    world = World(drain_timeout_s=30)
    life = world.loaded()
    world.ask()
    world.unload()
    world.wait(30)
    assert world.commands(life)[-2:] == ["Abort", "Unload"]


def test_a_forced_unload_aborts_at_once_also_in_mid_drain() -> None:
    world = World(drain_timeout_s=30, unload_timeout_s=5)
    life = world.loaded()
    world.ask()
    world.unload()
    world.unload(ticket="forced", force=True)
    assert world.commands(life)[-1] == "Abort"
    world.wait(5)
    assert world.commands(life)[-1] == "Unload"


def test_a_worker_that_does_not_go_is_asked_then_termed_then_killed() -> None:
    world = World(unload_timeout_s=5, term_timeout_s=5)
    life = world.loaded()
    world.unload()
    world.wait(4.9)
    assert world.signals(life) == []
    world.wait(0.1)
    assert world.signals(life) == [signal.SIGTERM]
    world.wait(5)
    assert world.signals(life) == [signal.SIGTERM, signal.SIGKILL]
    world.die(life)
    assert world.news("unload").forced


def test_chaos_068_a_loading_worker_is_termed_at_once_and_its_load_hears_of_it() -> None:
    world = World()
    world.load()
    world.unload()
    assert world.signals(1) == [signal.SIGTERM]
    assert isinstance(world.news("load"), ModelUnloading)
    world.die(1)
    assert world.news("unload").was_loaded


def test_a_worker_killed_while_it_stops_is_not_respawned() -> None:
    world = World()
    life = world.loaded()
    world.unload()
    world.die(life)
    assert world.news("unload").was_loaded
    assert world.alive == []


def test_a_worker_killed_while_it_drains_fails_its_requests_and_is_gone() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.unload()
    world.die(life)
    assert isinstance(world.news(request), ModelUnloading)
    assert world.news("unload").was_loaded


def test_a_model_waiting_in_backoff_unloads_at_once() -> None:
    world = World()
    world.die(world.loaded())
    world.ready(world.alive[0])
    world.die(world.alive[0])
    assert world.worker().state is S.BACKOFF
    world.unload()
    assert world.news("unload").was_loaded
    assert world.pool.deadline() == math.inf


def test_chaos_068_a_load_during_an_unload_runs_after_it() -> None:
    world = World()
    life = world.loaded()
    world.unload()
    world.load(ticket="again")
    world.leave(life)
    assert world.news("unload").was_loaded
    world.ready(world.alive[0])
    assert isinstance(world.news("again"), Loaded)


def test_an_unload_cancels_the_load_that_waits_behind_another() -> None:
    world = World()
    life = world.loaded()
    world.load(ticket="next", context_length=8)
    world.unload()
    assert isinstance(world.news("next"), ModelUnloading)
    world.leave(life)
    assert world.alive == []


def test_unloading_one_model_leaves_the_other_alone() -> None:
    world = World()
    first = world.loaded("a")
    second = world.loaded("b", ticket="b")
    request = world.ask("b")
    world.unload("a")
    world.leave(first)
    world.token(second, request, finish="stop")
    assert world.news(request)[4] == "stop"
    assert world.pool.status().current == "b"


def test_an_idle_model_goes_after_its_ttl_but_not_while_it_is_used_or_pinned() -> None:
    world = World()
    life = world.loaded(ttl_s=60)
    request = world.ask()
    world.wait(120)
    world.token(life, request, finish="stop")
    world.wait(59)
    assert world.worker().state is S.READY
    world.load(ticket="pin", ttl_s=60, pin=True)
    world.wait(600)
    assert world.worker().state is S.READY
    world.load(ticket="unpin", ttl_s=60)
    world.wait(1)
    assert world.worker().state is S.STOPPING


def test_the_status_says_when_an_idle_model_goes_and_nothing_while_it_is_used_or_pinned() -> None:
    world = World()
    life = world.loaded(ttl_s=60)
    assert world.model().idle_deadline == world.now + 60
    request = world.ask()
    assert world.model().idle_deadline is None
    world.wait(100)
    world.token(life, request, finish="stop")
    assert world.model().idle_deadline == world.now + 60
    world.load(ticket="pin", ttl_s=60, pin=True)
    assert world.model().idle_deadline is None


# Shutting down


def test_stop_ends_every_worker_and_refuses_what_comes_after() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.do(world.pool.stop(world.now))
    assert world.commands(life)[-1] == "Abort"
    world.token(life, request, "", "abort")
    assert not world.pool.is_stopped
    world.leave(life)
    assert world.pool.is_stopped
    assert isinstance(world.news(world.ask()), ShuttingDown)
    world.load(ticket="late")
    assert isinstance(world.news("late"), ShuttingDown)


def test_stop_cancels_a_load_that_waits_behind_an_unload() -> None:
    world = World()
    world.loaded()
    world.load(ticket="next", context_length=8)
    world.do(world.pool.stop(world.now))
    assert isinstance(world.news("next"), ShuttingDown)


# The spare


def test_the_spare_is_adopted_by_the_next_load_and_replaced_once_that_is_ready() -> None:
    world = World(spare=True, models={"m": ModelConfig(source="echo")})
    world.do(world.pool.tick(world.now))
    (spare,) = world.alive
    world.load()
    assert world.worker().life == spare
    assert world.alive == [spare]
    world.ready(spare)
    assert len(world.alive) == 2


def test_the_first_spare_imports_what_the_configured_models_need() -> None:
    echo = World(spare=True, models={"m": ModelConfig(source="echo")})
    mlx = World(spare=True)
    assert [e.engine for e in echo.pool.tick(0.0) if isinstance(e, Spawn)] == ["echo"]
    assert [e.engine for e in mlx.pool.tick(0.0) if isinstance(e, Spawn)] == ["mlx"]


def test_a_warm_spare_starts_a_load_without_a_spawn() -> None:
    world = World(spare=True)
    world.load()
    (first,) = world.alive
    world.ready(first)
    spare = world.alive[-1]
    world.say(spare, *UNTIL_LOADING)
    assert world.pool.status().spare_is_warm
    world.die(first)
    assert world.worker().life == spare
    assert world.worker().state is S.LOADING


def test_no_spare_is_started_while_another_worker_starts() -> None:
    world = World(spare=True)
    world.load()
    world.do(world.pool.tick(world.now))
    assert len(world.alive) == 1


def test_a_spare_that_keeps_dying_is_given_up_until_the_next_load() -> None:
    world = World(spare=True)
    world.do(world.pool.tick(world.now))
    for _ in range(3):
        world.die(world.alive[-1])
    assert world.alive == []


def test_a_spare_that_never_says_hello_is_killed() -> None:
    world = World(spare=True, hello_timeout_s=10)
    world.do(world.pool.tick(world.now))
    world.wait(10)
    assert world.signals(world.alive[0]) == [signal.SIGKILL]


def test_a_spare_that_was_told_to_die_is_not_adopted() -> None:
    world = World(spare=True, hello_timeout_s=10, models={"m": ModelConfig(source="echo")})
    world.do(world.pool.tick(world.now))
    (slow,) = world.alive
    world.wait(10)
    world.load()
    assert world.worker().life != slow


def test_the_spare_goes_with_the_supervisor() -> None:
    world = World(spare=True, term_timeout_s=5)
    world.do(world.pool.tick(world.now))
    (spare,) = world.alive
    world.do(world.pool.stop(world.now))
    assert world.signals(spare) == [signal.SIGTERM]
    assert not world.pool.is_stopped
    world.wait(5)
    assert world.signals(spare) == [signal.SIGTERM, signal.SIGKILL]
    world.die(spare)
    assert world.pool.is_stopped


@pytest.mark.parametrize("name", ["m", None])
def test_every_deadline_of_the_pool_is_in_the_future_after_a_tick(name: str | None) -> None:
    """Or the supervisor's loop would spin."""
    world = World(spare=True)
    world.load()
    world.ask()
    world.unload(name)
    for _ in range(100):
        due = world.pool.deadline()
        if due == math.inf:
            return
        world.now = due
        world.do(world.pool.tick(due))
        assert world.pool.deadline() > due


# News that comes too late, or twice


def test_the_end_of_a_process_that_nobody_knows_changes_nothing() -> None:
    world = World(spare=True)
    assert world.pool.exited(999, 0, "exited", world.now) == []


def test_a_spare_that_cannot_import_its_engine_is_replaced_when_it_is_gone() -> None:
    world = World(spare=True)
    world.do(world.pool.tick(world.now))
    (spare,) = world.alive
    assert world.say(spare, Hello(1), LoadFailed("engine_unavailable", "no mlx here")) == []
    world.die(spare, code=64)
    assert len(world.alive) == 1


def test_a_failure_of_a_request_that_has_ended_is_dropped() -> None:
    world = World()
    life = world.loaded()
    request = world.ask()
    world.token(life, request, finish="stop")
    assert world.say(life, RequestFailed(request, "generation_failed", "too late")) == []


def test_a_second_unload_waits_with_the_first_and_gives_no_more_time() -> None:
    world = World(drain_timeout_s=30)
    life = world.loaded()
    world.ask()
    world.unload(ticket="one")
    world.wait(20)
    world.unload(ticket="two")
    world.wait(10)
    assert world.commands(life)[-1] == "Unload"
    world.leave(life)
    assert world.news("one").was_loaded
    assert world.news("two").was_loaded


def test_a_replica_too_many_stops_when_the_last_of_its_requests_has_moved() -> None:
    world = World()
    world.loaded(replicas=2)
    requests = [world.ask() for _ in range(4)]
    moving = [request for request in requests if world.life_of(request) == 2]
    world.load(ticket="fewer", replicas=1)
    world.token(2, moving[0], "", "abort")
    assert world.worker(replica=2).state is S.DRAINING
    world.token(2, moving[1], "", "abort")
    assert world.worker(replica=2).state is S.STOPPING
    assert [world.resumed(request)[-1] for request in moving] == [(1, ()), (1, ())]
