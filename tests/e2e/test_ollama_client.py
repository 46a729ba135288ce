"""The official ollama client drives a daemon with the demo model: nothing but the host is set."""

import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

MODEL = "smollm2"
GREEDY = {"temperature": 0, "num_predict": 12, "repeat_penalty": 1.0}
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def ollama() -> Any:
    """The library, which takes its time to be imported: not while the tests of other tiers are collected."""
    return importlib.import_module("ollama")


@pytest.fixture(scope="module")
def client(ollama: Any, demo_daemon: Daemon) -> Iterator[Any]:
    print(f"ollama {importlib.metadata.version('ollama')}")
    with ollama.Client(host=demo_daemon.url, timeout=60) as made:
        yield made


def test_chat_whole_and_streamed(client):
    whole = client.chat(MODEL, QUESTION, options=GREEDY)
    assert "Paris" in whole.message.content
    *lines, last = client.chat(MODEL, QUESTION, options=GREEDY, stream=True)
    assert "".join(line.message.content for line in lines) == whole.message.content
    assert (last.done, last.eval_count, last.prompt_eval_count) == (True, whole.eval_count, whole.prompt_eval_count)
    assert last.eval_duration > 0


def test_generate_with_a_template_and_raw(client):
    assert "Paris" in client.generate(MODEL, QUESTION[0]["content"], system="Be brief.", options=GREEDY).response
    raw = client.generate(MODEL, "One, two, three,", raw=True, options={**GREEDY, "stop": [" five"]})
    assert raw.response.startswith(" four")
    assert "five" not in raw.response
    assert raw.done_reason == "stop"


def test_a_schema_is_kept(client):
    options = {"temperature": 1.5, "seed": 1, "num_predict": 60}
    answer = client.chat(MODEL, QUESTION, format=SCHEMA, options=options)
    assert set(json.loads(answer.message.content)) == {"city", "big"}
    assert isinstance(
        json.loads(client.generate(MODEL, "A city as JSON", format="json", options=options).response), dict
    )


def test_log_probabilities_whole_and_streamed(client):
    whole = client.chat(MODEL, QUESTION, options={**GREEDY, "num_predict": 4}, logprobs=True, top_logprobs=2).logprobs
    assert [len(each.top_logprobs) for each in whole] == [2] * 4
    assert all(each.token == each.top_logprobs[0].token for each in whole), "greedy: the chosen one is the likeliest"
    lines = client.chat(MODEL, QUESTION, options={**GREEDY, "num_predict": 4}, logprobs=True, stream=True)
    assert [each.token for line in lines for each in line.logprobs or ()] == [each.token for each in whole]


def test_functions_are_offered_and_their_results_are_read(client):
    """Ollama's clients cannot force a call, and this model is too small to make one by itself."""
    options = {"temperature": 0, "num_predict": 1}
    plain = client.chat(MODEL, QUESTION, options=options).prompt_eval_count
    offered = client.chat(MODEL, QUESTION, tools=[weather], options=options).prompt_eval_count
    assert offered > plain
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}]}
    result = {"role": "tool", "tool_name": "weather", "content": weather("Paris")}
    turns = [*QUESTION, call, result]
    assert client.chat(MODEL, turns, tools=[weather], options=options).prompt_eval_count > offered


def test_embeddings(client):
    many = client.embed("embedder", ["the man is eating food", "the quick brown fox"])
    assert [len(each) for each in many.embeddings] == [32, 32]
    assert client.embed("embedder", "the quick brown fox").embeddings[0] == pytest.approx(many.embeddings[1], abs=1e-5)
    assert client.embeddings("embedder", "the quick brown fox").embedding == pytest.approx(many.embeddings[1], abs=1e-5)


def test_models_are_listed_shown_and_loaded(client):
    assert {"smollm2", "e", "slow", "embedder"} <= {each.model for each in client.list().models}
    running = {each.model: each for each in client.ps().models}
    assert running[MODEL].context_length > 1000
    assert running[MODEL].size > 100_000_000
    assert client.generate(MODEL, keep_alive="5m").done_reason == "load"
    (expires,) = [each.expires_at for each in client.ps().models if each.model == MODEL]
    assert 290 < (expires - datetime.now(UTC)).total_seconds() <= 300
    shown = client.show(MODEL)
    assert {"completion", "tools"} <= set(shown.capabilities)
    assert shown.modelinfo["mlx.context_length"] == running[MODEL].context_length
    assert client.generate(MODEL, keep_alive=-1).done_reason == "load"
    (expires,) = [each.expires_at for each in client.ps().models if each.model == MODEL]
    assert expires.astimezone().year in {2299, 2300}


def test_what_cannot_be_done_is_the_clients_own_error(client, ollama):
    for wrong, name in (
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"think": True}, "think"),
    ):
        with pytest.raises(ollama.ResponseError, match=f"`{name}`") as caught:
            client.chat(MODEL, QUESTION, **wrong)
        assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat("nobody", QUESTION)
    assert missing.value.status_code == 404
    assert client.chat(MODEL, QUESTION, think=False, options={**GREEDY, "num_ctx": 64}).message.content
    assert client.chat(MODEL, QUESTION, options={**GREEDY, "num_ctx": 1 << 30, "num_predict": 1}).message.content


def test_an_answer_that_is_begun_is_gone_on_with(client):
    begun = [*QUESTION, {"role": "assistant", "content": "The capital city is called"}]
    assert client.chat(MODEL, begun, options=GREEDY).message.content.startswith(" Paris")


def test_closing_a_stream_ends_the_answer(client, demo_daemon):
    stream = client.chat("slow", [{"role": "user", "content": "word " * 2000}], stream=True)
    assert next(iter(stream)).message.content
    stream.close()
    demo_daemon.wait_idle("slow")
