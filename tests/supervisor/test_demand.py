"""Real workers on the echo engine that want the same memory: loads on demand, turns, and streams that lose nothing."""

import time
import uuid
from typing import Any

import pytest
from pools import StartPool, wait_until

from forgellm import Supervisor
from forgellm.errors import ModelInvalid, ModelNotFound, ModelNotLoaded
from forgellm.messages import Request, Sampling
from forgellm.states import WorkerState
from forgellm.supervisor import Generation

pytestmark = pytest.mark.process

MB = 1 << 20
ROOM_FOR_ONE: dict[str, Any] = {"memory_budget_bytes": 400 * MB, "spare": False}
SLOW = {"allocate_bytes": 200 * MB, "tokens_per_s": 100.0}


def words(count: int) -> str:
    return " ".join(map(str, range(count)))


def spawned(pool: Supervisor) -> int:
    """Workers ever started; lives count up from 1."""
    return max(worker.life for model in pool.status().models for worker in model.workers)


def test_requests_for_two_models_in_turn_need_two_loads_where_one_fits(start_pool: StartPool) -> None:
    pool = start_pool(ROOM_FOR_ONE, a=SLOW, b=SLOW)
    asked = [pool.generate(name, words(30)) for name in ("a", "b", "a", "b")]
    assert [generation.result().text for generation in asked] == [words(30)] * 4
    assert spawned(pool) == 2


def test_a_busy_model_gives_way_at_the_bound_and_its_stream_loses_nothing(start_pool: StartPool) -> None:
    """Also not while new requests keep it busy; what is cut off goes on after its tokens when it is back."""
    pool = start_pool({**ROOM_FOR_ONE, "max_hold_off_s": 0.5, "drain_timeout_s": 0.3}, a=SLOW, b=SLOW)
    streams = [pool.generate("a", words(count)) for count in (400, 380)]
    next(streams[0])
    began = time.monotonic()
    other = pool.generate("b", words(3))
    assert other.result().text == words(3)
    waited_s = time.monotonic() - began
    assert 0.5 <= waited_s < 10
    assert not any(stream.has_ended for stream in streams)
    assert "0" + "".join(token.text for token in streams[0]) == words(400)
    assert streams[1].result().text == words(380)
    assert streams[0].usage is not None
    assert streams[0].usage.completion_tokens == 400
    assert spawned(pool) == 3
    print(f"the other model waited {waited_s:.2f} s for its whole answer (bound 0.5 s, drain 0.3 s, unload and load)")


def test_a_request_says_how_long_its_model_stays(start_pool: StartPool) -> None:
    pool = start_pool({"aliases": {"short": "e"}}, e={})
    request = Request(request_id="r", model="short", prompt="one two", sampling=Sampling(), keep_alive_s=0.0)
    assert pool.submit(request).result().text == "one two"
    wait_until(lambda: pool.status().model("e") is None)


def test_an_alias_is_its_model_wherever_it_is_named(start_pool: StartPool) -> None:
    pool = start_pool({"aliases": {"short": "e", "shorter": "short"}}, e={})
    assert pool.plan("short").model == "e"
    assert pool.load("shorter").model == "e"
    assert pool.generate("short", "one").result().text == "one"
    found = pool.status().model("shorter")
    assert found is not None
    assert (found.name, set(found.aliases)) == ("e", {"short", "shorter"})
    assert next(entry for entry in pool.catalog() if entry.id == "e").aliases == ("short", "shorter")
    assert pool.unload("short").was_loaded


def test_with_the_policy_preloaded_a_request_loads_nothing_but_what_is_to_be_preloaded(start_pool: StartPool) -> None:
    pool = start_pool({"load_policy": "preloaded"}, e={})
    with pytest.raises(ModelNotLoaded, match="load_policy"):
        pool.generate("e", "one").result()
    pool.load("e")
    assert pool.generate("e", "one").result().text == "one"


def test_a_request_that_may_only_use_what_is_loaded_has_nothing_loaded(start_pool: StartPool) -> None:
    """Its own policy, which came with its API key."""

    def ask() -> Generation:
        return pool.submit(Request(request_id=uuid.uuid4().hex, model="e", prompt="one", load_policy="preloaded"))

    pool = start_pool({}, e={})
    with pytest.raises(ModelNotLoaded, match="your API key"):
        ask().result()
    assert pool.status().models == ()
    pool.load("e")
    assert ask().result().text == "one"


def test_what_cannot_be_loaded_tells_each_request_why(start_pool: StartPool) -> None:
    pool = start_pool({"spare": False}, broken={"load_error": "model_invalid: the header is cut", "load_s": 0.2})
    asked = [pool.generate("broken", "one") for _ in range(3)]
    for generation in asked:
        with pytest.raises(ModelInvalid, match="the header is cut"):
            generation.result()
    with pytest.raises(ModelNotFound):
        pool.generate("nobody", "one").result()
    with pytest.raises(ModelNotLoaded, match="path"):
        pool.generate("/etc", "one").result()
    found = pool.status().model("broken")
    assert found is not None
    assert found.state is WorkerState.FAILED
    assert spawned(pool) == 1
