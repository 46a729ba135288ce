"""The OpenAI routes over HTTP, on real workers with the echo engine: shapes, streams, errors."""

import base64
import json
from array import array
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from live import Live, live

from forgellm.api import answers

pytestmark = pytest.mark.process

NASTY = 'data: {"a":1}\n\ndata: [DONE]\n\nevent: x\r\r: \x00\x07\x1b[31m \u2028 "quoted" \\ 🙂 日本語'
LONG = " ".join(str(number) for number in range(5000))
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models = {
        "e": {},
        "slow": {"text": LONG, "tokens_per_s": 50},
        "prefill": {"prefill_s": 60.0},
        "fails": {"text": LONG, "fail_at_token": 2},
        "refuses": {"fail_at_token": 0},
        "nasty": {"text": NASTY},
    }
    with live(tmp_path_factory.mktemp("openai"), models) as found:
        for name in models:
            found.load(name)
        yield found


def chat(api: Live, content: str = "one two three", **body: Any) -> httpx2.Response:
    return api.http.post(CHAT, json={"model": "e", "messages": [{"role": "user", "content": content}], **body})


def events(response: httpx2.Response) -> list[Any]:
    """The data of each event, parsed as the standard says; "[DONE]" stays text, comments are left out."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/event-stream")
    blocks = response.content.decode().split("\n\n")
    assert blocks.pop() == "", "the last event is whole"
    found = []
    for block in blocks:
        data = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        if data:
            found.append("\n".join(data))
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def deltas(chunks: list[Any], index: int = 0) -> list[dict[str, Any]]:
    choices = [choice for chunk in chunks if chunk != "[DONE]" for choice in chunk["choices"]]
    return [choice for choice in choices if choice["index"] == index]


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in deltas(chunks, index))


def test_a_chat_is_answered_in_the_shape_of_openai(api):
    response = chat(api)
    answer = response.json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["id"] == response.headers["X-Request-Id"]
    assert answer["model"] == "e"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_stream_is_a_role_then_text_then_a_reason_then_done(api):
    *chunks, done = events(chat(api, stream=True))
    assert done == "[DONE]"
    first, *_, last = deltas(chunks)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "one two three"
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


def test_the_counts_come_last_when_asked_for(api):
    *chunks, last, done = events(chat(api, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 6)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_several_choices_are_several_answers_and_one_prompt(api):
    answer = chat(api, n=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 9
    chunks = events(chat(api, n=3, stream=True))
    assert [text_of(chunks, index) for index in range(3)] == ["one two three"] * 3
    assert [deltas(chunks, index)[-1]["finish_reason"] for index in range(3)] == ["stop"] * 3


def test_max_tokens_ends_an_answer_with_length(api):
    choice = chat(api, max_tokens=2).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two", "length")


def test_text_of_a_model_cannot_end_or_begin_an_event(api):
    """Row 92: what looks like an event in the answer is text in a JSON string."""
    chunks = events(chat(api, model="nasty", stream=True))
    assert text_of(chunks) == NASTY
    assert chunks.count("[DONE]") == 1
    assert chat(api, model="nasty").json()["choices"][0]["message"]["content"] == NASTY


def test_an_error_is_in_the_envelope_of_openai(api):
    response = chat(api, max_tokens=0)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "max_tokens", "invalid_request")
    assert "`max_tokens`" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody/home", 404, "model_not_found"),
    ],
)
def test_errors_of_the_router_are_in_that_envelope_too(api, method, path, status, code):
    response = api.http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_other_paths_keep_their_own_envelope(api):
    assert api.http.get("/api/nothing").json()["success"] is False
    assert api.http.get("/v11").json()["success"] is False


def test_a_body_that_is_too_large_is_refused_in_that_envelope(api):
    response = api.http.post(CHAT, content=b"x" * (17 << 20), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


def test_a_failure_before_the_first_token_has_a_real_status(api):
    for stream in (False, True):
        response = chat(api, model="refuses", stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "generation_failed")


def test_a_failure_after_the_first_byte_is_one_error_event(api):
    *chunks, last = events(chat(api, model="fails", stream=True))
    assert last["error"]["code"] == "generation_failed"
    assert not any("error" in chunk for chunk in chunks)


def test_a_quiet_stream_pings_once_its_status_can_wait_no_longer(api, monkeypatch):
    monkeypatch.setattr(answers, "STATUS_WAIT_S", 0.0)
    monkeypatch.setattr(answers, "QUIET_S", 0.05)
    body = {"model": "prefill", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with api.http.stream("POST", CHAT, json=body) as response:
        pieces = response.iter_raw()
        assert [next(pieces), next(pieces)] == [b": ping\n\n"] * 2


def test_models_are_listed_with_their_state(api):
    listed = {each["id"]: each for each in api.http.get("/v1/models").json()["data"]}
    assert (listed["e"]["object"], listed["e"]["state"], listed["e"]["context_length"]) == ("model", "ready", 1 << 20)
    assert (listed["smollm2"]["state"], listed["smollm2"]["context_length"]) == ("stopped", None)
    assert api.http.get("/v1/models/e").json() == listed["e"]


# Completions ---------------------------------------------------------------------------------------------------------


def complete(api: Live, **body: Any) -> httpx2.Response:
    return api.http.post("/v1/completions", json={"model": "e", "prompt": "one two three", **body})


def test_each_prompt_of_a_list_has_its_choices_one_after_the_other(api):
    answer = complete(api, prompt=["a b", "c"], n=2).json()
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [(0, "a b"), (1, "a b"), (2, "c"), (3, "c")]
    assert (answer["object"], answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (
        *("text_completion", 3),
        6,
    )
    assert answer["id"].startswith("cmpl-")


def test_token_ids_are_a_prompt(api):
    """The echo engine says the ids back."""
    assert complete(api, prompt=[5, 6]).json()["choices"][0]["text"] == "5 6"
    assert [each["text"] for each in complete(api, prompt=[[5], [6, 7]]).json()["choices"]] == ["5", "6 7"]


def test_an_echo_is_the_prompt_before_the_answer_whole_or_streamed(api):
    assert complete(api, echo=True, max_tokens=1).json()["choices"][0]["text"] == "one two threeone"
    *chunks, done = events(complete(api, echo=True, max_tokens=1, stream=True))
    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "one two threeone"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_a_completion_cannot_do_is_refused_by_name(api, body, field):
    response = complete(api, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


# Responses -----------------------------------------------------------------------------------------------------------


def respond(api: Live, **body: Any) -> httpx2.Response:
    return api.http.post("/v1/responses", json={"model": "e", "input": "one two three", **body})


def test_a_response_is_items_with_what_they_cost(api):
    answer = respond(api, metadata={"a": "b"}).json()
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    (item,) = answer["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "one two three", "annotations": [], "logprobs": []}]
    assert answer["usage"]["total_tokens"] == 6
    assert answer["metadata"] == {"a": "b"}


def test_a_response_that_was_cut_is_incomplete(api):
    answer = respond(api, max_output_tokens=2).json()
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    *_, last = events(respond(api, max_output_tokens=2, stream=True))
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")


def test_the_events_of_a_response_build_what_its_last_event_holds(api):
    response = respond(api, stream=True)
    found = events(response)
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert names[:4] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
    ]
    assert names[-4:] == [
        *("response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"),
    ]
    text = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert text == found[-1]["response"]["output"][0]["content"][0]["text"] == "one two three"
    assert found[0]["response"]["output"] == []


def test_a_response_that_fails_ends_with_one_error_event(api):
    *before, failed, last = events(respond(api, model="fails", stream=True))
    assert (last["type"], last["code"]) == ("error", "generation_failed")
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "generation_failed")
    text = "".join(event["delta"] for event in before if event["type"] == "response.output_text.delta")
    assert [(item["status"], item["content"][0]["text"]) for item in response["output"]] == [("incomplete", text)]
    assert not {"error", "response.failed", "response.output_item.done"} & {event["type"] for event in before}


# Embeddings ----------------------------------------------------------------------------------------------------------


def test_each_input_has_a_vector_as_numbers_or_as_bytes(api):
    body = {"model": "e", "input": ["a", "b c"]}
    answer = api.http.post("/v1/embeddings", json=body).json()
    assert [each["index"] for each in answer["data"]] == [0, 1]
    packed = api.http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    for numbers, raw in zip(answer["data"], packed["data"], strict=True):
        assert list(array("f", base64.b64decode(raw["embedding"]))) == numbers["embedding"]
        assert numbers["embedding"]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 3
