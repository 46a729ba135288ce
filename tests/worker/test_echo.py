"""The echo engine says the prompt back, and its knobs do what they say; the deadly ones are tested with processes."""

import struct

import pytest

from forgellm.errors import ConfigError, EmptyPrompt, ModelInvalid
from forgellm.messages import Embedding, EngineOptions, ModelSource, Prefill, Request, RequestFailed, Sampling
from forgellm.worker.echo import EchoEngine


def engine(**options: object) -> EchoEngine:
    made = EchoEngine()
    made.load(ModelSource(name="e", kind="echo", options=options), EngineOptions(), lambda done, stage: None)
    return made


def ask(engine: EchoEngine, prompt: str = "one two three", max_tokens: int = 100, **more: object) -> None:
    sampling = Sampling(max_tokens=max_tokens)
    engine.add(Request(request_id="r", model="e", prompt=prompt, sampling=sampling, **more))  # type: ignore[arg-type]


def run(engine: EchoEngine) -> tuple[str, list[int], str | None]:
    """(text, token ids, finish reason) of the only request."""
    text, ids, finish = "", [], None
    while engine.has_work():
        for chunk in engine.step()[0]:
            text, finish = text + chunk[1], chunk[4]
            ids += chunk[2]
    return text, ids, finish


def test_it_says_the_prompt_back_word_by_word() -> None:
    made = engine()
    ask(made)
    assert run(made) == ("one two three", [0, 1, 2], "stop")


def test_max_tokens_cuts_the_answer() -> None:
    made = engine()
    ask(made, max_tokens=2)
    assert run(made) == ("one two", [0, 1], "length")


def test_the_last_user_message_is_the_prompt() -> None:
    made = engine()
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "hi there"})
    made.add(Request(request_id="r", model="e", messages=messages))
    assert run(made)[0] == "hi there"


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_resumed_request_goes_on_after_the_tokens_it_had(sent: int) -> None:
    made = engine()
    ask(made, resume=tuple(range(sent)))
    text, ids, finish = run(made)
    assert ("one two three".endswith(text), ids, finish) == (True, list(range(sent, 3)), "stop")


def test_an_aborted_request_ends_with_what_it_had() -> None:
    made = engine(tokens_per_s=1000.0)
    ask(made)
    made.step()
    made.abort("r")
    made.abort("unknown")
    chunk = made.step()[0][0]
    assert chunk[4] == "abort"
    assert chunk[5] is not None
    assert chunk[5].completion_tokens == 1


def test_a_slow_prefill_reports_its_progress() -> None:
    made = engine(prefill_s=0.01)
    ask(made)
    assert Prefill("r", 0, 3) in made.step()[1]
    assert run(made)[0] == "one two three"


def test_knobs_fail_loads_and_requests() -> None:
    with pytest.raises(ModelInvalid, match="cut"):
        engine(load_error="model_invalid: cut")
    with pytest.raises(ConfigError, match="tokens_per_second"):
        engine(tokens_per_second=3)
    made = engine(fail_at_token=1)
    ask(made)
    made.step()
    assert isinstance(made.step()[1][0], RequestFailed)
    with pytest.raises(EmptyPrompt):
        ask(made, "  ")


def test_its_memory_grows_with_tokens_and_only_its_cache_can_be_trimmed() -> None:
    made = engine(allocate_bytes=4096, cache_bytes=2048, leak_bytes_per_token=1024, grow_bytes_per_token=1024)
    assert made.memory() == (4096, 2048)
    ask(made)
    made.step()
    assert made.memory() == (4096 + 2 * 1024, 2048)
    made.trim_caches()
    run(made)
    assert made.memory() == (4096 + 3 * 1024, 0), "what a request grew by is given back with its end"


def test_an_embedding_counts_the_words_and_characters_of_each_input() -> None:
    made = engine()
    made.add(Request(request_id="r", model="e", inputs=("one two", (1, 22, 333))))
    ((*_, finish, usage, parts),) = made.step()[0]
    assert finish == "stop"
    assert usage is not None
    assert [(part.index, struct.unpack("<2f", part.vector)) for part in parts or () if isinstance(part, Embedding)] == [
        (0, (2.0, 7.0)),
        (1, (3.0, 8.0)),
    ]


def test_counting_says_nothing_back() -> None:
    made = engine()
    for request in (
        Request(request_id="r", model="e", prompt="one two", count_only=True),
        Request(request_id="r", model="e", inputs=("one two",), count_only=True),
    ):
        made.add(request)
        ((_, text, _, _, finish, usage, parts),) = made.step()[0]
        assert (text, finish, parts) == ("", "stop", None)
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (2, 0)
