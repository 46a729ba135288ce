"""The table of states, read as a table."""

import pytest

from forgellm.states import HAS_PROCESS, IS_LOADING, LEGAL_MOVES, WILL_SERVE, IllegalMove, WorkerState, check_move


@pytest.mark.parametrize("old", WorkerState)
@pytest.mark.parametrize("new", WorkerState)
def test_a_move_is_made_if_the_table_holds_it_and_refused_if_not(old: WorkerState, new: WorkerState) -> None:
    if new in LEGAL_MOVES[old]:
        assert check_move(old, new) is new
    else:
        with pytest.raises(IllegalMove):
            check_move(old, new)


def test_every_state_can_be_reached_and_left() -> None:
    assert set(LEGAL_MOVES) == set(WorkerState)
    assert set().union(*LEGAL_MOVES.values()) == set(WorkerState)
    assert all(LEGAL_MOVES.values())


def test_a_worker_that_stops_can_only_be_stopped() -> None:
    assert LEGAL_MOVES[WorkerState.STOPPING] == {WorkerState.STOPPED}


def test_the_named_sets_agree_with_each_other() -> None:
    assert IS_LOADING < WILL_SERVE
    assert WorkerState.BACKOFF not in HAS_PROCESS
