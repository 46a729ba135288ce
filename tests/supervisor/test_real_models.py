"""The supervisor with real MLX: what the echo engine cannot prove."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

import psutil
import pytest

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.messages import Constraint, Part, Request, Sampling, ToolCall, Tools
from forgellm.supervisor import Generation, Token

pytestmark = pytest.mark.model

PROMPTS = [f"tell me story number {n}" for n in range(4)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """Two models: the same tiny one in two folders."""
    import tiny_model

    folder = tmp_path_factory.mktemp("real")
    models = {name: ModelConfig(source=str(tiny_model.build(folder / name, context=2048))) for name in ("a", "b")}
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


def test_a_constrained_stream_and_a_call_survive_the_death_of_their_worker(pool: Supervisor) -> None:
    """The grammar, the call's id and the half-written arguments are rebuilt from the tokens."""
    pool.load("b")
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 60, "maxItems": 60}
    constraint = Constraint(kind="json_schema", text=json.dumps(schema))
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    tools = Tools(functions=({"type": "function", "function": {"name": "f", "parameters": parameters}},), name="f")
    sampling = Sampling(max_tokens=320, temperature=1.0, seed=5)
    free = Request(request_id="", model="b", messages=({"role": "user", "content": "hi"},), sampling=sampling)

    def ask_both(life: str) -> list[Generation]:
        kept = replace(free, request_id=f"kept {life}", prompt="one two", messages=None, constraint=constraint)
        called = replace(free, request_id="called", tools=replace(tools, choice="named"))
        return [pool.submit(kept), pool.submit(called)]

    def read(tokens: Iterable[Token]) -> tuple[str, list[Part]]:
        found = list(tokens)
        return "".join(token.text for token in found), [part for token in found for part in token.parts or ()]

    expected = [read(generation) for generation in ask_both("before")]
    running = ask_both("after")
    heads = [[next(generation) for _ in range(20)] for generation in running]
    model = pool.status().model("b")
    assert model is not None
    psutil.Process(model.workers[0].pid).kill()
    assert [read([*head, *generation]) for head, generation in zip(heads, running, strict=True)] == expected
    assert expected[0][0].startswith("[")
    assert len(expected[1][1]) > 20


def test_a_python_call_says_what_the_answer_must_look_like_and_what_it_may_call(pool: Supervisor) -> None:
    pool.load("b")
    one_of_two = Constraint(kind="regex", text="yes|no")
    assert pool.generate("b", "one", constraint=one_of_two, temperature=1.0, max_tokens=20).result().text in {
        "yes",
        "no",
    }
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": False}
    tools = Tools(functions=({"type": "function", "function": {"name": "f", "parameters": schema}},), choice="required")
    found = list(pool.generate("b", "one", tools=replace(tools, parallel=False), temperature=1.0, max_tokens=100))
    calls = [part for token in found for part in token.parts or () if isinstance(part, ToolCall)]
    assert calls[0].name == "f"
    assert json.loads("".join(call.arguments for call in calls)) == {"a": 7}
