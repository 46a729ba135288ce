"""Models that want the same memory take turns: what is collated, the bound, and what becomes of streams in its way."""

import pytest
from test_budget import sized
from test_loads import Demanding

from forgellm.config import Settings
from forgellm.errors import InsufficientMemory
from forgellm.states import WorkerState

S = WorkerState


def loads(machine: Demanding) -> int:
    return sum("Load" in machine.commands(life) for life in range(1, machine.spawns() + 1))


def end(machine: Demanding, *requests: str) -> None:
    """Let running requests finish."""
    for request in requests:
        machine.token(machine.resumed(request)[-1][0], request, finish="stop")


def test_requests_for_two_models_in_turn_need_two_loads() -> None:
    machine = Demanding()
    a1, b1, a2, b2 = (machine.ask(name) for name in "abab")
    assert machine.states() == {"a": S.STARTING, "b": S.WAITING}
    first = machine.get_ready("a")
    end(machine, a1, a2)
    machine.leave(first)
    machine.get_ready("b")
    end(machine, b1, b2)
    assert loads(machine) == 2


def test_while_another_waits_a_loaded_model_serves_its_new_requests_within_the_bound() -> None:
    machine = Demanding()
    machine.hold("a", 60)
    machine.ask("a")
    machine.ask("b")
    machine.wait(29)
    assert machine.life_of(machine.ask("a")) is not None
    machine.wait(1)
    assert machine.states() == {"a": S.DRAINING, "b": S.WAITING}
    assert machine.life_of(machine.ask("a")) is None


def test_at_the_bound_running_requests_may_finish_and_the_others_come_after() -> None:
    machine = Demanding()
    life = machine.hold("a", 60)
    running = machine.ask("a")
    for_b = machine.ask("b")
    machine.wait(30)
    late = machine.ask("a")
    end(machine, running)
    assert machine.states()["a"] is S.STOPPING
    machine.leave(life)
    assert machine.states() == {"b": S.STARTING, "a": S.WAITING}
    second = machine.get_ready("b")
    assert machine.life_of(for_b) == second
    end(machine, for_b)
    machine.leave(second)
    machine.get_ready("a")
    end(machine, late)
    assert [machine.delivered(request)[-1][4] for request in (running, for_b, late)] == ["stop"] * 3


@pytest.mark.parametrize("lets_go", ["in time", "never"])
def test_what_runs_longer_goes_on_later_after_its_tokens(lets_go: str) -> None:
    """Whether its worker says so or is ended first; and it is not to blame for that worker's end."""
    machine = Demanding()
    life = machine.hold("a", 60)
    running = machine.ask("a")
    machine.token(life, running, "x")
    for_b = machine.ask("b")
    machine.wait(40)
    assert "Abort" in machine.commands(life)
    assert machine.commands(life)[-1] == "Unload"
    if lets_go == "in time":
        machine.token(life, running, "", "abort")
        machine.leave(life)
    else:
        machine.wait(10)
        machine.die(life)
    end_b = machine.get_ready("b")
    end(machine, for_b)
    machine.leave(end_b)
    machine.get_ready("a")
    assert machine.resumed(running)[-1] == (machine.worker("a").life, (1,))
    assert not machine.pool._requests.asked[running].crashes
    end(machine, running)
    assert [chunk[1] for chunk in machine.delivered(running)] == ["x", "t"]


def test_two_busy_models_take_turns_of_the_bound_each() -> None:
    """Each turn begins when the model is ready: one that loads for long is not sent off before it served anybody."""
    machine = Demanding()
    machine.ask("a")
    turns = []
    machine.ask("b")
    for name, other in ("ab", "ba", "ab"):
        machine.wait(5)
        assert machine.states()[name] is S.STARTING
        life, began = machine.get_ready(name), machine.now
        machine.ask(name)
        while machine.states()[name] is S.READY:
            machine.wait(1)
        turns.append(machine.now - began)
        machine.leave(life)
        assert machine.states()[other] is S.STARTING
    assert turns == [30, 30, 30]


def test_of_several_that_wait_the_first_is_the_first() -> None:
    machine = Demanding()
    life = machine.hold("a", 60)
    running = machine.ask("a")
    for_c, for_b = machine.ask("c"), machine.ask("b")
    end(machine, running)
    machine.leave(life)
    assert machine.states() == {"c": S.STARTING, "b": S.WAITING}
    second = machine.get_ready("c")
    end(machine, for_c)
    machine.leave(second)
    machine.get_ready("b")
    end(machine, for_b)


def test_a_small_one_does_not_push_in_where_it_would_take_what_the_first_waits_for() -> None:
    machine = Demanding()
    machine.hold("a", 60)
    machine.ask("a")
    machine.ask("b")
    machine.ask("small")
    assert machine.states() == {"a": S.READY, "b": S.WAITING, "small": S.WAITING}


def test_no_more_models_go_than_are_in_its_way_and_the_longest_served_goes_first() -> None:
    machine = Demanding()
    first = machine.hold("x", 40)
    machine.now += 5
    machine.hold("y", 40)
    machine.ask("x")
    machine.ask("y")
    machine.on_demand["z"] = sized("z", 40)
    machine.ask("z")
    machine.wait(30)
    assert machine.states() == {"x": S.DRAINING, "y": S.READY, "z": S.WAITING}
    assert machine.worker("x").life == first


def test_without_a_bound_a_model_waits_until_the_others_are_idle() -> None:
    machine = Demanding(max_hold_off_s=0)
    machine.hold("a", 60)
    running = machine.ask("a")
    machine.ask("b", queue_s=0.0)
    machine.wait(10_000)
    assert machine.states() == {"a": S.READY, "b": S.WAITING}
    end(machine, running)
    assert machine.states() == {"a": S.STOPPING, "b": S.WAITING}


def test_a_pinned_model_is_never_in_a_turn() -> None:
    machine = Demanding()
    machine.hold("a", 60, pin=True)
    machine.ask("a")
    assert isinstance(machine.news(machine.ask("b")), InsufficientMemory)
    machine.wait(100)
    assert machine.states() == {"a": S.READY}


def test_one_that_gets_pinned_while_another_waits_for_it_stays_and_the_other_is_told() -> None:
    machine = Demanding()
    life = machine.hold("a", 60)
    machine.ask("a")
    waiting = machine.ask("b")
    end_this = machine.ask("a", keep_alive_s=-1.0)
    assert isinstance(machine.news(waiting), InsufficientMemory)
    assert machine.states() == {"a": S.READY, "b": S.FAILED}
    machine.token(life, end_this, finish="stop")
    assert machine.states() == {"a": S.READY, "b": S.FAILED}


def test_a_model_that_died_and_waits_to_be_started_is_put_away_at_once() -> None:
    machine = Demanding(backoff_initial_s=60, backoff_max_s=60)
    machine.ask("a")
    for _ in range(2):
        machine.die(machine.get_ready("a"))
    assert machine.states() == {"a": S.BACKOFF}
    machine.ask("b")
    machine.wait(30)
    assert machine.states() == {"b": S.STARTING, "a": S.WAITING}


def test_a_model_that_crashed_and_comes_back_keeps_another_out_no_longer_than_the_bound() -> None:
    """Nobody has a process then: the memory is promised to it, because requests wait for it."""
    machine = Demanding(backoff_initial_s=300.0, backoff_max_s=300.0, crash_budget=9)
    machine.hold("a", 60)
    machine.ask("a")
    machine.die(machine.alive[0])
    machine.get_ready("a")
    machine.die(machine.alive[0])
    assert machine.states()["a"] is S.BACKOFF
    machine.ask("b")
    machine.wait(29)
    assert machine.states() == {"a": S.BACKOFF, "b": S.WAITING}
    machine.wait(1)
    assert machine.states() == {"b": S.STARTING, "a": S.WAITING}


@pytest.mark.parametrize(
    ("knobs", "found"),
    [({"max_hold_off_s": 5.0}, {"a": S.STOPPING, "b": S.WAITING}), ({}, {"a": S.READY, "b": S.STARTING})],
    ids=["a shorter bound", "more memory"],
)
def test_other_settings_count_at_once_for_who_waits(knobs: dict[str, float], found: dict[str, S]) -> None:
    machine = Demanding(drain_timeout_s=0.0)
    machine.hold("a", 60)
    machine.ask("a")
    machine.ask("b")
    machine.wait(10)
    assert machine.states() == {"a": S.READY, "b": S.WAITING}
    budget = 100 if knobs else 200
    settings = Settings(spare=False, memory_soft_limit=1.0, drain_timeout_s=0.0, **knobs)
    machine.do(machine.pool.reload(settings, budget, [], machine.now))
    machine.wait(0)
    assert machine.states() == found
