"""Every option of Ollama does what its row says, and durations are read as Go reads them."""

import itertools
from typing import Any

import msgspec
import pytest

from forgellm.api.schemas import Param, params_of
from forgellm.api.schemas.ollama import OllamaChatBody
from forgellm.api.schemas.ollama_options import Options
from forgellm.errors import InvalidRequest, Unsupported
from forgellm.messages import Request, Sampling

PARAMS = params_of(Options).values()
SAMPLED: dict[str, tuple[Any, str, Any]] = {
    "num_predict": (7, "max_tokens", 7),
    "seed": (7, "seed", 7),
    "stop": (["a"], "stop", ("a",)),
    "temperature": (0.5, "temperature", 0.5),
    "top_k": (3, "top_k", 3),
    "top_p": (0.5, "top_p", 0.5),
    "min_p": (0.5, "min_p", 0.5),
    "repeat_penalty": (1.5, "repetition_penalty", 1.5),
    "presence_penalty": (1.5, "presence_penalty", 1.5),
    "frequency_penalty": (-1.5, "frequency_penalty", -1.5),
}
NO_EFFECT: dict[str, Any] = {"num_keep": 24, "mirostat_tau": 5.0, "mirostat_eta": 0.1}


def request(**body: Any) -> Request:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    return OllamaChatBody.decode(msgspec.json.encode(asked), "application/json").to_requests()[0]


def sampling(**options: Any) -> Sampling:
    return request(options=options).sampling


def of(verdict: str) -> list[Param]:
    return [param for param in PARAMS if param.verdict == verdict]


@pytest.mark.parametrize("param", of("honoured"), ids=lambda param: param.name)
def test_an_honoured_option_changes_the_request_as_it_says(param: Param) -> None:
    if param.name == "num_ctx":
        assert (request().context_length, request(options={"num_ctx": 64}).context_length) == (None, 64)
        return
    value, name, becomes = SAMPLED[param.name]
    assert getattr(sampling(), name) != becomes
    assert getattr(sampling(**{param.name: value}), name) == becomes


@pytest.mark.parametrize("param", of("no effect"), ids=lambda param: param.name)
def test_an_option_without_effect_has_none(param: Param) -> None:
    assert sampling(**{param.name: NO_EFFECT[param.name]}) == sampling()


@pytest.mark.parametrize("param", of("only"), ids=lambda param: param.name)
def test_an_option_of_one_value_takes_no_other(param: Param) -> None:
    assert sampling(**{param.name: param.value}) == sampling()
    for other in ("other", 7, not param.value):
        with pytest.raises(Unsupported, match=f"`options.{param.name}` can only be") as caught:
            sampling(**{param.name: other})
        assert caught.value.field == f"options.{param.name}"


@pytest.mark.parametrize("param", of("refused"), ids=lambda param: param.name)
def test_a_refused_option_is_named_with_the_reason_unless_it_is_null(param: Param) -> None:
    with pytest.raises(Unsupported) as caught:
        sampling(**{param.name: 1})
    assert caught.value.field == f"options.{param.name}"
    assert param.says in caught.value.message
    assert sampling(**{param.name: None}) == sampling()


def test_the_table_is_whole() -> None:
    assert {param.name for param in of("honoured")} == {*SAMPLED, "num_ctx"}
    assert {param.name for param in of("no effect")} == set(NO_EFFECT)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"nothing": 1}, "nothing"), ({"top_p": 2}, "top_p"), ({"num_predict": 0}, "num_predict"), ({"seed": -2}, "seed")],
)
def test_a_wrong_option_is_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`options.{field}`") as caught:
        sampling(**options)
    assert caught.value.field == f"options.{field}"


def test_what_has_no_limit_is_left_to_the_context() -> None:
    assert sampling(num_predict=-1).max_tokens == sampling(num_predict=-2).max_tokens == 2**31 - 1
    assert sampling(seed=-1).seed is None


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("300ms", 0.3),
        ("0", 0),
        ("-1", -1),
        ("-1m", -60),
        (0, 0),
        (90, 90),
    ],
)
def test_a_duration_is_read_as_go_reads_it(given: Any, seconds: float) -> None:
    assert request(keep_alive=given).keep_alive_s == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "5", "m", "5 m", "1d", "1h-5m", "forever", 1e10, ".s", "1..5s"])
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(keep_alive=given)
    assert caught.value.field == "keep_alive"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "a", "images": ["x"]}, "messages[0].images"),
        ({"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, None),
        ({"role": "user"}, "messages[0].content"),
    ],
)
def test_a_wrong_message_is_named(message: dict[str, Any], field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(messages=[message])
    assert caught.value.field == (field or "messages[0].tool_calls")


def test_words_for_thinking_are_words_of_the_template() -> None:
    for think, options in itertools.chain(
        [(False, {"enable_thinking": False})], ((word, {"reasoning_effort": word}) for word in ("low", "high"))
    ):
        assert request(think=think).template_options == options
