"""Followers hear what happens, in order, and never hold the supervisor up."""

import threading

from forgellm.errors import ModelFailed
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Announce, Deliver, Evicted, Progressed
from forgellm.supervisor.watch import UNREAD, Watches

MOVE = Announce("m#1", 1, WorkerState.STARTING, WorkerState.LOADING, "load")
STEP = Progressed("m#1", 1, 0.5, "reading weights")


def test_every_follower_hears_of_each_change_once_and_of_nothing_else() -> None:
    watches = Watches()
    watches.take([MOVE])
    first, second = watches.begin(), watches.begin()
    watches.take([STEP, Deliver("r", ModelFailed("no")), Evicted("m", "idle", "idle for 1 s")])
    heard = [STEP, Evicted("m", "idle", "idle for 1 s")]
    assert first.take(0) == second.take(0) == heard
    assert first.take(0) == []


def test_a_follower_hears_only_of_the_models_it_wants_to() -> None:
    watches = Watches()
    watch = watches.begin(lambda model: model == "n")
    watches.take([MOVE, Evicted("m", "idle", "idle"), Progressed("n#2", 1, 0.5, "reading weights")])
    assert watch.take(0) == [Progressed("n#2", 1, 0.5, "reading weights")]


def test_a_follower_that_does_not_read_is_dropped_and_told() -> None:
    watches = Watches()
    slow, quick = watches.begin(), watches.begin()
    for _ in range(UNREAD):
        watches.take([STEP])
    assert quick.take(0) == [STEP] * UNREAD
    watches.take([STEP])
    assert (slow.has_ended, slow.is_lost, slow.take(0)) == (True, True, [])
    assert quick.take(0) == [STEP]


def test_who_closed_hears_nothing_and_is_forgotten() -> None:
    watches = Watches()
    with watches.begin() as watch:
        pass
    watches.take([MOVE])
    assert (watch.take(0), watch.has_ended, watch.is_lost) == ([], True, False)
    assert watches._all == ()


def test_the_end_wakes_those_who_wait_and_those_who_come_later() -> None:
    watches = Watches()
    watch = watches.begin()
    heard: list[object] = []
    reader = threading.Thread(target=lambda: heard.append(watch.take(30)))
    reader.start()
    watches.end()
    reader.join(10)
    assert heard == [[]]
    assert watch.has_ended
    assert watches.begin().has_ended
