"""Ollama's routes over HTTP, on real workers with the echo engine: shapes, lines, loads, errors."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from live import Live, live, wait_until

pytestmark = pytest.mark.process

LONG = " ".join(str(number) for number in range(5000))
COUNTS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    models: dict[str, Any] = {"e": {}, "asleep": {}, "fails": {"text": LONG, "fail_at_token": 2}}
    with live(tmp_path_factory.mktemp("ollama"), models) as found:
        for name in ("e", "fails"):
            found.load(name)
        yield found


def chat(api: Live, **body: Any) -> httpx2.Response:
    turn = {"role": "user", "content": "one two three"}
    return api.http.post("/api/chat", json={"model": "e", "messages": [turn], "stream": False, **body})


def generate(api: Live, **body: Any) -> httpx2.Response:
    return api.http.post("/api/generate", json={"model": "e", "prompt": "one two three", "stream": False, **body})


def lines(response: httpx2.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    assert response.text.endswith("\n"), "the last line is whole"
    return [json.loads(line) for line in response.text.splitlines()]


def test_a_chat_is_answered_in_the_shape_of_ollama(api):
    answer = chat(api).json()
    assert answer["message"] == {"role": "assistant", "content": "one two three"}
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("e", True, "stop")
    assert datetime.fromisoformat(answer["created_at"]).tzinfo is not None
    assert set(answer) >= COUNTS
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (3, 3)
    assert answer["total_duration"] >= answer["prompt_eval_duration"] + answer["eval_duration"]


def test_a_stream_is_the_default_and_its_last_line_has_the_counts(api):
    *first, last = lines(chat(api, stream=None))
    assert "".join(line["message"]["content"] for line in first) == "one two three"
    assert {line["done"] for line in first} == {False}
    assert not any(COUNTS & set(line) for line in first)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert set(last) >= COUNTS


def test_a_prompt_is_answered_whole_and_streamed(api):
    assert generate(api).json()["response"] == "one two three"
    assert generate(api, raw=True).json()["response"] == "one two three"
    *first, last = lines(generate(api, stream=True, options={"num_predict": 2}))
    assert "".join(line["response"] for line in first) == "one two"
    assert (last["response"], last["done_reason"]) == ("", "length")


def test_without_a_prompt_a_model_is_loaded_and_let_go(api):
    def state() -> Any:
        return api.http.get("/api/ps").json()["models"]

    assert "asleep" not in [model["name"] for model in state()]
    let_go = api.http.post("/api/generate", json={"model": "asleep", "keep_alive": 0}).json()
    assert (let_go["done"], let_go["done_reason"]) == (True, "unload"), "and it was not loaded for that"
    assert "asleep" not in [model["name"] for model in state()]
    loaded = api.http.post("/api/chat", json={"model": "asleep"}).json()
    assert (loaded["message"]["content"], loaded["done_reason"]) == ("", "load")
    assert "asleep" in [model["name"] for model in state()]
    (let_go,) = lines(api.http.post("/api/generate", json={"model": "asleep", "keep_alive": "0s"}))
    assert let_go["done_reason"] == "unload"
    wait_until(lambda: "asleep" not in [model["name"] for model in state()])


def test_what_is_loaded_says_when_it_goes(api):
    """Within a second of what was asked for; a pinned one goes when somebody unloads it."""

    def left_s() -> float:
        (found,) = [each for each in api.http.get("/api/ps").json()["models"] if each["name"] == "asleep"]
        return (datetime.fromisoformat(found["expires_at"]) - datetime.now(UTC)).total_seconds()

    generate(api, model="asleep", keep_alive="5m")
    assert 299 <= left_s() <= 300
    with api.http.stream("POST", "/api/generate", json={"model": "asleep", "prompt": LONG, "keep_alive": 100}) as busy:
        next(busy.iter_lines())
        assert 99 <= left_s() <= 100
    generate(api, model="asleep", keep_alive=-1)
    assert left_s() > 200 * 365 * 86400
    generate(api, model="asleep", keep_alive=1e9)
    assert left_s() == pytest.approx(1e9, abs=2)
    generate(api, model="asleep", prompt="", keep_alive=0)
    wait_until(lambda: "asleep" not in [each["name"] for each in api.http.get("/api/ps").json()["models"]])


def test_latest_means_nothing(api):
    answer = chat(api, model="e:latest").json()
    assert (answer["model"], answer["message"]["content"]) == ("e:latest", "one two three")


def test_models_are_listed_and_shown(api):
    tags = {tag["name"]: tag for tag in api.http.get("/api/tags").json()["models"]}
    assert set(tags) >= {"e", "asleep", "smollm2"}
    assert tags["smollm2"]["size"] > 50_000_000
    assert len({tag["digest"] for tag in tags.values()}) == len(tags)
    loaded = {each["model"]: each for each in api.http.get("/api/ps").json()["models"]}
    assert loaded["e"]["context_length"] == 1 << 20
    assert loaded["e"]["digest"] == tags["e"]["digest"]
    shown = api.http.post("/api/show", json={"name": "e"}).json()
    assert shown["capabilities"] == ["completion", "embedding"]
    assert shown["model_info"]["mlx.context_length"] == 1 << 20
    assert api.http.post("/api/show", json={"model": "smollm2:latest"}).json()["capabilities"] == ["completion"]
    missing = api.http.post("/api/show", json={"model": "nobody"})
    assert (missing.status_code, missing.json()["code"]) == (404, "model_not_found")
    assert api.http.get("/api/version").json()["version"][0].isdigit()


def test_vectors_are_lists_of_numbers(api):
    answer = api.http.post("/api/embed", json={"model": "e", "input": ["a b", "c"]}).json()
    assert answer["embeddings"] == [[2.0, 3.0], [1.0, 1.0]]
    assert (answer["model"], answer["prompt_eval_count"]) == ("e", 3)
    one = api.http.post("/api/embed", json={"model": "e", "input": "a b"}).json()
    assert one["embeddings"] == [[2.0, 3.0]]
    assert api.http.post("/api/embeddings", json={"model": "e", "prompt": "a b"}).json() == {"embedding": [2.0, 3.0]}


def test_an_error_is_a_sentence_with_a_code(api):
    response = chat(api, options={"top_p": 3})
    body = response.json()
    assert (response.status_code, body["code"], body["field"]) == (400, "invalid_request", "options.top_p")
    assert body["error"].startswith("`options.top_p`")


def test_a_failure_after_the_first_byte_is_the_last_line(api):
    *first, last = lines(chat(api, model="fails", stream=True))
    assert (last["code"], "fault knob" in last["error"]) == ("generation_failed", True)
    assert not any(line["done"] for line in first)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"images": ["x"]}, "images"),
        ({"context": [1, 2]}, "context"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"raw": True, "system": "x"}, "system"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"format": "yaml"}, "format"),
        ({"width": 5}, "width"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(api, body, field):
    response = generate(api, **body)
    assert (response.status_code, response.json()["field"]) == (400, field)


def test_what_clients_send_as_nothing_is_nothing(api):
    empty = {"suffix": "", "system": "", "template": "", "context": [], "images": [], "format": "", "options": {}}
    assert generate(api, **empty).json()["response"] == "one two three"
