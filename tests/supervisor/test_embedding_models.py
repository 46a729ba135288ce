"""An embedding model beside a chat model, in real workers."""

from collections.abc import Iterator

import psutil
import pytest
from pools import wait_until

from forgellm import Embeddings, ModelConfig, Settings, Supervisor
from forgellm.errors import ContextLengthExceeded, Unsupported
from forgellm.messages import Request
from forgellm.supervisor import ModelStatus

pytestmark = pytest.mark.model

TEXTS = [f"the {noun} is playing {thing}" for noun in ("man", "girl", "fox") for thing in ("music", "drums")] * 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    import tiny_embedder
    import tiny_model

    folder = tmp_path_factory.mktemp("embedding")
    models = {
        "chat": ModelConfig(source=str(tiny_model.build(folder / "chat"))),
        "embedder": ModelConfig(source=str(tiny_embedder.build(folder / "embedder"))),
    }
    with Supervisor(Settings(models=models, cache_dir=str(folder / "cache"))) as started:
        started.load("chat")
        started.load("embedder")
        yield started


def status_of(pool: Supervisor, name: str) -> ModelStatus:
    model = pool.status().model(name)
    assert model is not None
    return model


def worker_of(pool: Supervisor, name: str) -> psutil.Process:
    return psutil.Process(status_of(pool, name).workers[0].pid)


def test_an_embedding_model_serves_beside_a_chat_model_and_says_so(pool: Supervisor) -> None:
    info = status_of(pool, "embedder").info
    assert info is not None
    assert info.capabilities == ("embedding",)
    found = pool.embed("embedder", TEXTS[:3])
    assert [len(vector) for vector in found.vectors] == [32] * 3
    assert found.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS[:3])
    assert pool.generate("chat", "hello", max_tokens=4).result().usage.completion_tokens > 0
    task = {entry.id: entry.task for entry in pool.catalog()}
    assert (task["embedder"], task["chat"]) == ("embed", "generate")


def test_each_kind_of_model_refuses_what_the_other_is_for(pool: Supervisor) -> None:
    with pytest.raises(Unsupported, match="embed"):
        pool.generate("embedder", "hello").result()
    with pytest.raises(Unsupported, match="need an embedding model"):
        pool.embed("chat", "hello")
    with pytest.raises(ContextLengthExceeded):
        pool.embed("embedder", "fox " * 100)
    assert len(pool.embed("embedder", "fox " * 100, truncate=True).vectors) == 1
    for option in ({"max_kv_size": 5}, {"system_prompt": "Be brief."}):
        with pytest.raises(Unsupported, match="embedding model"):
            pool.load("embedder", **option)  # type: ignore[arg-type]  # one option each


def test_callers_see_nothing_of_the_death_of_an_embedding_worker(pool: Supervisor) -> None:
    expected = [vector.tolist() for vector in pool.embed("embedder", TEXTS).vectors]
    stream = pool.generate("chat", "hello", max_tokens=200, temperature=1.0, seed=1)
    victim = worker_of(pool, "embedder")
    victim.suspend()  # so that all of it is under way when the worker dies
    running = [pool.submit(Request(request_id=f"r{n}", model="embedder", inputs=tuple(TEXTS))) for n in range(3)]
    wait_until(lambda: status_of(pool, "embedder").in_flight == 3)
    victim.kill()
    for generation in running:
        found = [vector.tolist() for vector in Embeddings.of(generation).vectors]
        assert found == [pytest.approx(vector, abs=1e-5) for vector in expected]
    assert stream.result().finish_reason in {"length", "stop"}
    assert worker_of(pool, "embedder").pid != victim.pid


def test_the_warm_spare_is_kept_for_chat_models(pool: Supervisor) -> None:
    wait_until(lambda: pool.status().spare_is_warm)
    spare = pool.status().spare_pid
    worker_of(pool, "chat").kill()
    wait_until(lambda: pool.status().spare_pid != spare)
    pool.generate("chat", "hello", max_tokens=4).result()
    assert worker_of(pool, "chat").pid == spare


def test_an_embedding_model_can_be_unloaded_and_gives_its_memory_back(pool: Supervisor) -> None:
    worker = worker_of(pool, "embedder")
    assert pool.unload("embedder").freed_bytes > 0
    assert not worker.is_running()
