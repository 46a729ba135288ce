"""The official openai client drives a daemon with the demo model: nothing but the base URL is set."""

import importlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from daemons import Daemon

pytestmark = [pytest.mark.e2e, pytest.mark.model]

MODEL = "smollm2"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"const": "Paris"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def openai() -> Any:
    """The library, which takes its time to be imported: not while the tests of other tiers are collected."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def client(openai: Any, demo_daemon: Daemon) -> Iterator[Any]:
    print(f"openai {openai.__version__}")
    with openai.OpenAI(base_url=f"{demo_daemon.url}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def in_flight(demo_daemon: Daemon, model: str) -> int:
    status = demo_daemon.http.get("/api/model/status", params={"model": model}).json()
    return int(status["in_flight"])


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint


def test_an_answer_that_is_begun_is_gone_on_with(client):
    begun = [*QUESTION, {"role": "assistant", "content": "The capital city is called"}]
    also = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(model=MODEL, messages=begun, temperature=0, max_tokens=4, extra_body=also)
    assert answer.choices[0].message.content.startswith(" Paris")


def test_a_stream_says_the_same_and_counts_it(client):
    asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_each_of_several_choices_can_be_asked_for_alone(client):
    asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 1.5, "max_tokens": 5}
    texts = [choice.message.content for choice in client.chat.completions.create(**asked, seed=40, n=4).choices]
    assert len(set(texts)) == 4
    alone = [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in range(40, 44)]
    assert alone == texts


def test_log_probabilities_whole_and_streamed(client):
    asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 4}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(whole) == 4
    for token in whole:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token, "greedy: the chosen one is the likeliest"
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    chunks = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, stream=True)
    streamed = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert [each.token for each in streamed] == [each.token for each in whole]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in whole], abs=1e-3)


def test_a_logit_bias_forces_a_token(client):
    """Token 28 of SmolLM2 is whatever it is: with +100 it comes every time."""
    asked: Any = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
    assert "Paris" in client.completions.create(**asked).choices[0].text
    biased = client.completions.create(**asked, logit_bias={"28": 100}, logprobs=0).choices[0]
    assert len(set(biased.logprobs.tokens)) == 1


def test_a_schema_is_kept(client):
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=1.5, seed=1, max_tokens=40, response_format=schema
    ).choices[0]
    assert answer.finish_reason == "stop"
    value = json.loads(answer.message.content)
    assert (type(value["city"]), type(value["big"])) == (str, bool)


def test_a_choice_is_one_of_the_choices(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=8, extra_body={"guided_choice": ["Lyon (69)", "Nice.*"]}
    ).choices[0]
    assert answer.message.content in {"Lyon (69)", "Nice.*"}


def test_a_call_is_made_and_streamed_and_answered(client):
    asked: Any = {"model": MODEL, "messages": QUESTION, "tools": [TOOL], "seed": 1, "max_tokens": 60}
    whole = client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    chunks = list(client.chat.completions.create(**asked, tool_choice=named, parallel_tool_calls=False, stream=True))
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or ()]
    assert pieces[0].id
    assert pieces[0].function.name == "weather"
    assert len(pieces) > 2
    assert set(json.loads("".join(piece.function.arguments or "" for piece in pieces))) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = client.chat.completions.create(
        model=MODEL, messages=[*QUESTION, whole.message, result], tools=[TOOL], max_tokens=1
    )
    assert after.usage.prompt_tokens > 0


def test_what_the_model_cannot_do_is_refused_under_the_clients_name(client, openai):
    asked: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
    for wrong in ({"reasoning_effort": "low"}, {"guided_regex": "("}, {"chat_template_kwargs": {"nothing": 1}}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked, extra_body=wrong)
        assert caught.value.param == next(iter(wrong))


def test_completions_echo_and_stop(client):
    answer = client.completions.create(
        model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=10, stop=[" five"], echo=True
    ).choices[0]
    assert answer.text.startswith("One, two, three, four")
    assert "five" not in answer.text
    assert answer.finish_reason == "stop"


def test_responses_whole_and_streamed(client):
    asked: Any = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0}
    whole = client.responses.create(**asked, max_output_tokens=8)
    assert "Paris" in whole.output_text
    with client.responses.stream(**asked, max_output_tokens=8) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == whole.output_text
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_embeddings_as_bytes_and_as_numbers(client, openai):
    """On the echo engine; what real vectors are worth is tested with the engine that makes them."""
    packed = client.embeddings.create(model="e", input=["a", "b c"])
    plain = client.embeddings.create(model="e", input=["a", "b c"], encoding_format="float")
    assert [each.embedding for each in packed.data] == [each.embedding for each in plain.data]
    assert packed.data[0].embedding != packed.data[1].embedding
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="e", input="a", dimensions=2)
    assert caught.value.param == "dimensions"


def test_models(client):
    listed = {model.id: model for model in client.models.list()}
    assert listed[MODEL].state == "ready"
    assert {"chat", "structured"} <= set(listed[MODEL].capabilities)
    assert client.models.retrieve(MODEL).context_length == listed[MODEL].context_length > 1000


def test_errors_are_the_clients_own_classes(client, openai):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=QUESTION, verbosity="low")
    assert (caught.value.param, caught.value.code) == ("verbosity", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_closing_a_stream_ends_the_answer(client, demo_daemon):
    stream = client.chat.completions.create(
        model="slow", messages=[{"role": "user", "content": "word " * 2000}], stream=True
    )
    assert next(iter(stream))
    assert in_flight(demo_daemon, "slow") == 1
    stream.close()
    deadline = time.monotonic() + 20
    while in_flight(demo_daemon, "slow"):
        assert time.monotonic() < deadline
