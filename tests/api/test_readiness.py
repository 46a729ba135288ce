"""When a pool counts as serving: progress, not a listening socket."""

from dataclasses import replace

import pytest
from pictures import model_status, pool_status

from forgellm.api.readiness import Readiness, readiness
from forgellm.states import WorkerState
from forgellm.supervisor.counts import Counts, Distribution, ModelCounts
from forgellm.supervisor.status import MemoryStatus, ModelStatus, WorkerStatus

NOTHING = Distribution((1.0,), (0, 0), 0.0)
S = WorkerState


def model(name: str, *states: WorkerState, in_flight: int = 0, error: str | None = None) -> ModelStatus:
    workers = tuple(
        WorkerStatus(
            name=f"{name}#{number}",
            replica=number,
            life=number,
            state=state,
            since=0.0,
            reason="",
            pid=1,
            restarts=0,
            progress=0.0,
            stage="",
            in_flight=0,
            memory=MemoryStatus(),
        )
        for number, state in enumerate(states, 1)
    )
    return model_status(name, state=states[0], in_flight=in_flight, error=error, workers=workers)


def waiting(**waits: float) -> Counts:
    """Counts in which the requests of each model have waited so long."""
    return Counts(
        tuple(
            ModelCounts(
                model=name,
                queue=NOTHING,
                first_token=NOTHING,
                between_tokens=NOTHING,
                request=NOTHING,
                load=NOTHING,
                prompt_tokens=0,
                cached_tokens=0,
                completion_tokens=0,
                replays=0,
                quarantined=0,
                waiting_s=wait_s,
            )
            for name, wait_s in waits.items()
        )
    )


def test_a_pool_with_nothing_loaded_is_ready_for_a_load() -> None:
    assert readiness(pool_status(), Counts(), 30) == Readiness(is_ready=True)


@pytest.mark.parametrize("state", sorted(set(S) - {S.READY}))
def test_a_pool_none_of_whose_models_is_ready_says_so(state: WorkerState) -> None:
    found = readiness(pool_status(model("m", state)), Counts(), 30)
    assert (found.word, found.reasons) == ("not_ready", (f"m: m#1 is {state}",))


def test_a_pool_with_a_ready_model_serves() -> None:
    assert readiness(pool_status(model("m", S.READY)), Counts(), 30).word == "ok"


def test_what_is_wrong_beside_a_model_that_serves_makes_it_degraded() -> None:
    failed = model("b", S.FAILED, error="its files are broken")
    found = readiness(pool_status(model("a", S.READY, S.BACKOFF), failed), Counts(), 30)
    assert (found.is_ready, found.word) == (True, "degraded")
    assert found.reasons == ("a: a#2 is backoff", "b: its files are broken")


def test_a_model_whose_requests_make_no_progress_does_not_serve() -> None:
    """Its socket listens, its worker is there: still nobody should be sent here."""
    found = readiness(pool_status(model("m", S.READY, in_flight=3)), waiting(m=31.0), 30)
    assert (found.is_ready, found.reasons) == (False, ("m: 3 requests, and no progress for 31 s",))
    assert readiness(pool_status(model("m", S.READY, in_flight=3)), waiting(m=29.0), 30).word == "ok"


def test_the_limit_can_be_switched_off() -> None:
    assert readiness(pool_status(model("m", S.READY, in_flight=3)), waiting(m=1e6), 0).is_ready


def test_a_stalled_model_beside_one_that_serves_is_degraded() -> None:
    found = readiness(pool_status(model("a", S.READY), model("b", S.READY, in_flight=1)), waiting(a=0.0, b=99.0), 30)
    assert (found.word, found.reasons) == ("degraded", ("b: 1 requests, and no progress for 99 s",))


def test_requests_that_wait_for_a_load_are_no_stall() -> None:
    found = readiness(pool_status(model("m", S.LOADING)), waiting(m=99.0), 30)
    assert found.reasons == ("m: m#1 is loading",)


def test_a_pool_that_stops_is_not_ready() -> None:
    assert readiness(pool_status(model("m", S.READY), is_stopping=True), Counts(), 30).word == "not_ready"


def test_what_is_drained_is_not_ready() -> None:
    drained = replace(model("m", S.READY), is_drained=True)
    assert readiness(pool_status(drained), Counts(), 30) == Readiness(is_ready=False, reasons=("m is drained",))
    assert readiness(pool_status(model("m", S.READY), is_drained=True), Counts(), 30).reasons == ("it is drained",)
