"""The order in which clients get their turns."""

from hypothesis import given
from hypothesis import strategies as st
from world import World

from forgellm.supervisor.fair_queue import FairQueue

CLIENTS = st.sampled_from(["ann", "bob", "cy"])


def filled(*ids: str) -> FairQueue:
    """A queue of "ann1", "bob1" …: the letters are the client."""
    queue = FairQueue()
    for each in ids:
        queue.append(each, each.rstrip("0123456789"))
    return queue


def drained(queue: FairQueue) -> list[str]:
    return [queue.take_turn() for _ in range(len(queue) - len(queue.again()))]


def test_clients_take_turns_and_each_ones_requests_keep_their_order() -> None:
    queue = filled("ann1", "ann2", "ann3", "bob1", "bob2", "cy1")
    assert drained(queue) == ["ann1", "bob1", "cy1", "ann2", "bob2", "ann3"]
    assert len(queue) == 0
    assert not queue.has_turns


def test_a_newcomer_waits_for_one_turn_of_each_other_not_for_all_their_requests() -> None:
    queue = filled(*(f"ann{number}" for number in range(1000)))
    assert queue.take_turn() == "ann0"
    queue.append("bob1", "bob")
    assert [queue.take_turn() for _ in range(3)] == ["ann1", "bob1", "ann2"]


def test_who_leaves_the_queue_gives_no_turn_away() -> None:
    queue = filled("ann1", "bob1", "bob2", "cy1")
    queue.remove("ann1")
    queue.remove("bob1")
    assert drained(queue) == ["bob2", "cy1"]


def test_who_runs_again_is_no_turn_and_stands_before_those_that_came_back_earlier() -> None:
    queue = filled("ann1")
    queue.append_again("bob2")
    queue.append_again("bob1")
    assert queue.again() == ["bob1", "bob2"]
    assert len(queue) == 3
    queue.remove("bob1")
    assert list(queue) == ["bob2", "ann1"]
    assert queue.clear() == ["bob2", "ann1"]
    assert list(queue) == []


def test_each_clients_waiting_requests_are_counted_without_those_that_run_again() -> None:
    queue = filled("ann1", "ann2", "bob1")
    queue.append_again("ann3")
    assert [queue.waiting(name) for name in ("ann", "bob", "cy")] == [2, 1, 0]
    queue.take_turn()
    queue.remove("bob1")
    assert [queue.waiting(name) for name in ("ann", "bob", "cy")] == [1, 0, 0]


@given(st.lists(st.tuples(CLIENTS, st.booleans()), max_size=60))
def test_while_a_client_waits_no_other_has_two_turns_more(steps: list[tuple[str, bool]]) -> None:
    queue, waiting, turns = FairQueue(), dict[str, list[str]](), dict[str, dict[str, int]]()
    for number, (client, takes) in enumerate(steps):
        if not takes:
            queue.append(f"{client}{number}", client)
            waiting.setdefault(client, []).append(f"{client}{number}")
            turns.setdefault(client, {})
        elif waiting:
            served = queue.take_turn().rstrip("0123456789")
            waiting[served].pop(0)
            for since in turns.values():
                since[served] = since.get(served, 0) + 1
            turns[served] = {}
            if not waiting[served]:
                del waiting[served], turns[served]
        assert all(count <= 1 for client in waiting for count in turns[client].values())
    assert len(queue) == sum(map(len, waiting.values()))


def test_on_a_full_worker_each_place_that_gets_free_is_the_next_clients() -> None:
    world = World()
    life = world.loaded(max_batch=1)
    running = world.ask(client="ann")
    asked = [world.ask(client=name) for name in ("ann", "ann", "bob", "ann", "bob")]
    order = []
    for _ in asked:
        world.token(life, running, finish="stop")
        running = world.generates()[-1][1].request.request_id
        order.append(asked.index(running))
    assert order == [0, 2, 1, 4, 3]
