"""Embedding requests through the pool, with the echo engine: two numbers for each input."""

import psutil
import pytest
from pools import StartPool, wait_until

from forgellm import Embeddings, Supervisor
from forgellm.errors import GenerationFailed, InvalidRequest, ModelNotLoaded, ShuttingDown
from forgellm.messages import Embedding, Request, Usage
from forgellm.supervisor import Generation

USAGE = Usage(prompt_tokens=3, completion_tokens=0)


def a_generation() -> Generation:
    return Generation("r", "e", abort=lambda _id: None)


def test_vectors_come_in_the_order_of_the_inputs_as_numbers_and_as_bytes() -> None:
    generation = a_generation()
    second, first = Embedding(1, b"\0\0\x80?"), Embedding(0, b"\0\0\0@")
    generation.put(("r", "", (), None, "stop", USAGE, (second, first)))
    found = Embeddings.of(generation)
    assert [vector.tolist() for vector in found.vectors] == [[2.0], [1.0]]
    assert [vector.tobytes() for vector in found.vectors] == [first.vector, second.vector]
    assert found.usage == USAGE


def test_an_aborted_request_has_no_vectors_and_says_so() -> None:
    generation = a_generation()
    generation.put(("r", "", (), None, "abort", USAGE, None))
    with pytest.raises(GenerationFailed, match="aborted"):
        Embeddings.of(generation)


def test_an_error_that_ended_the_request_is_raised() -> None:
    generation = a_generation()
    generation.fail(ModelNotLoaded("no"))
    with pytest.raises(ModelNotLoaded):
        Embeddings.of(generation)


def test_a_python_call_takes_one_text_or_a_list_and_refuses_what_is_neither() -> None:
    pool = Supervisor()
    for given in ("one two", ["one two"], ((1, 2),)):
        with pytest.raises(ShuttingDown):
            pool.embed("e", given)
    for bad in ([1.5], [["a"]], 7, [(-1,)]):
        with pytest.raises(InvalidRequest, match="inputs"):
            pool.embed("e", bad)  # type: ignore[arg-type]  # on purpose


@pytest.mark.process
def test_an_embedding_request_whose_worker_is_killed_is_run_again(start_pool: StartPool) -> None:
    pool = start_pool(e={"prefill_s": 0.3})
    pool.load("e")
    generation = pool.submit(Request(request_id="r", model="e", inputs=("one two", "three")))
    wait_until(lambda: generation.prefill[1] > 0)
    model = pool.status().model("e")
    assert model is not None
    psutil.Process(model.workers[0].pid).kill()
    assert [vector.tolist() for vector in Embeddings.of(generation).vectors] == [[2.0, 7.0], [1.0, 5.0]]
