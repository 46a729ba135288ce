"""Who waits hears of it, once, and nobody is kept alive to hear."""

import gc
import weakref

import pytest

from forgellm.errors import ModelFailed, ShuttingDown
from forgellm.supervisor.deliveries import Deliveries
from forgellm.supervisor.effects import Loaded
from forgellm.supervisor.generation import Generation

LOADED = Loaded(model="m", adapter_path=None, loading_time_s=None, already_loaded=False)


def generation(deliveries: Deliveries, request_id: str = "r") -> Generation:
    found = Generation(request_id, "m", lambda request_id: None)
    deliveries.expect(request_id, found)
    return found


def test_a_ticket_gets_its_answer_and_is_forgotten() -> None:
    deliveries = Deliveries()
    with deliveries.ticket() as (ticket_id, ticket):
        assert ticket.wait(0.0) is None
        deliveries.deliver(ticket_id, LOADED)
        deliveries.deliver(ticket_id, ModelFailed("too late"))
        assert ticket.wait(0.0) == LOADED


def test_a_generation_gets_all_news_up_to_its_end_and_none_after() -> None:
    deliveries = Deliveries()
    found = generation(deliveries)
    deliveries.deliver("r", ("r", "a", (1,), None, None, None, None))
    deliveries.deliver("r", ("r", "b", (2,), None, "stop", None, None))
    deliveries.deliver("r", ("r", "ghost", (3,), None, "stop", None, None))
    assert [token.text for token in found] == ["a", "b"]


def test_a_request_that_runs_keeps_its_news_from_another_of_its_id_until_it_has_ended() -> None:
    """Else the first one would wait for ever."""
    deliveries = Deliveries()
    first, second = (Generation("r", "m", lambda request_id: None) for _ in range(2))
    assert deliveries.expect("r", first)
    assert not deliveries.expect("r", second)
    deliveries.deliver("r", ModelFailed("gone"))
    assert first.has_ended
    assert deliveries.expect("r", second)


def test_news_for_nobody_is_dropped() -> None:
    deliveries = Deliveries()
    deliveries.deliver("", LOADED)
    alive = weakref.ref(generation(deliveries))
    gc.collect()
    assert alive() is None
    deliveries.deliver("r", ("r", "a", (1,), None, None, None, None))


def test_when_nobody_answers_any_more_all_who_wait_are_told() -> None:
    deliveries = Deliveries()
    found = generation(deliveries)
    with deliveries.ticket() as (_, ticket):
        deliveries.fail_all()
        with pytest.raises(ShuttingDown):
            ticket.wait(0.0)
    with pytest.raises(ShuttingDown):
        next(found)
