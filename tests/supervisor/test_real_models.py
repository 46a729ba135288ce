"""The supervisor with real MLX: what the echo engine cannot prove."""

from collections.abc import Iterator

import psutil
import pytest

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.supervisor import Generation

pytestmark = pytest.mark.model

PROMPTS = [f"tell me story number {n}" for n in range(4)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """Two models: the same tiny one in two folders."""
    import tiny_model

    folder = tmp_path_factory.mktemp("real")
    models = {name: ModelConfig(source=str(tiny_model.build(folder / name))) for name in ("a", "b")}
    settings = Settings(models=models, cache_dir=str(folder / "cache"), spare=False)
    with Supervisor(settings) as started:
        yield started


def ask(pool: Supervisor, model: str, tokens: int) -> list[Generation]:
    return [pool.generate(model, p, max_tokens=tokens, temperature=1.0, seed=n) for n, p in enumerate(PROMPTS)]


def test_two_real_models_answer_together_and_unloading_one_gives_its_memory_back(pool: Supervisor) -> None:
    for name in ("a", "b"):
        pool.load(name)
    alone = [generation.result().text for generation in ask(pool, "b", 400)]
    running = ask(pool, "b", 400)
    assert [generation.result().finish_reason for generation in ask(pool, "a", 8)]
    model = pool.status().model("a")
    assert model is not None
    worker = psutil.Process(model.workers[0].pid)
    before = worker.memory_full_info().uss
    freed = pool.unload("a").freed_bytes
    assert not worker.is_running()
    assert 0.5 * before < freed < 2 * before
    assert [generation.result().text for generation in running] == alone


def test_a_real_stream_survives_the_death_of_its_worker_with_the_same_text(pool: Supervisor) -> None:
    pool.load("b")
    expected = [generation.result().text for generation in ask(pool, "b", 200)]
    running = ask(pool, "b", 200)
    heads = [next(generation).text for generation in running]
    model = pool.status().model("b")
    assert model is not None
    psutil.Process(model.workers[0].pid).kill()
    assert [head + generation.result().text for head, generation in zip(heads, running, strict=True)] == expected
