"""Frames keep what they carry, and refuse what they do not know."""

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgellm.control import frames
from forgellm.control.frames import BadFrame, Failed, News
from forgellm.errors import BY_CODE, InvalidRequest, QueueFull
from forgellm.messages import (
    Constraint,
    Embedding,
    Reasoning,
    Request,
    Sampling,
    Stopped,
    Timeouts,
    ToolCall,
    Tools,
    Usage,
)
from forgellm.supervisor import Token
from forgellm.supervisor.reload import ReloadPlan


def there_and_back(frame, decoder):
    data = frames.encode(frame)
    assert int.from_bytes(data[: frames.HEADER_BYTES], "big") == len(data) - frames.HEADER_BYTES
    return frames.decode(data[frames.HEADER_BYTES :], decoder)


REQUESTS = [
    Request(request_id="a", model="m", prompt="hello", resume=(1, 2, 3), client="k1", load_policy="preloaded"),
    Request(
        request_id="b", model="m", prompt=(5, 6), timeouts=Timeouts(total_s=2.5), context_length=9, count_only=True
    ),
    Request(request_id="c", model="m", inputs=("one", (2, 3)), template_options={"enable_thinking": False}),
    Request(
        request_id="d",
        model="m",
        messages=({"role": "user", "content": [{"type": "text", "text": "ß"}]},),
        tools=Tools(functions=({"type": "function", "function": {"name": "f"}},), choice="named", name="f"),
        constraint=Constraint(kind="regex", text="a+"),
        sampling=Sampling(seed=2**63 - 1, stop=("x",), logit_bias=((1, -100.0),), logprobs=2),
    ),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.request_id)
def test_a_request_arrives_as_it_was_sent(request_):
    call = there_and_back(frames.Submit(request_), frames.CALL)
    assert isinstance(call, frames.Submit)
    assert call.request == request_


def test_all_that_a_token_holds_arrives():
    parts = (Reasoning("hm"), ToolCall(0, '{"a": 1}', "id", "f"), Embedding(0, b"\x00\xff"), Stopped("END"))
    logprobs = ((7, "x", -0.5, ((8, "y", -1.0),)),)
    tokens = [Token("one", (1, 2)), Token("", (3,), logprobs, parts)]
    usage = Usage(prompt_tokens=2, completion_tokens=3, prefill_s=0.5)
    news = there_and_back(News(frames.wire_tokens(tokens), (1, 2), "stop", usage), frames.NEWS)
    chunks = frames.chunks(news)
    assert [Token(text, ids, lp, pt) for _, text, ids, lp, _, _, pt in chunks[:-1]] == tokens
    assert chunks[-1][4:6] == ("stop", usage)
    assert news.prefill == (1, 2)


@pytest.mark.parametrize("code", BY_CODE)
def test_every_error_comes_back_as_its_own_class(code):
    error = BY_CODE[code]("a sentence", field="model", retry_after_s=2.5)
    back = there_and_back(Failed.of(error), frames.ANSWER).error()
    assert type(back) is BY_CODE[code]
    assert (back.message, back.field, back.retry_after_s) == ("a sentence", "model", 2.5)


def test_an_error_has_no_need_of_a_field():
    back = there_and_back(Failed.of(QueueFull("full")), frames.NEWS).error()
    assert (back.field, back.retry_after_s) == (None, 1.0)


def test_half_a_surrogate_pair_is_the_callers_error():
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        frames.encode(frames.Submit(Request(request_id="a", model="m", prompt="\ud800")))


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        pickle.dumps(Evil()),
        msgspec.msgpack.encode({"type": "nonsense"}),
        msgspec.msgpack.encode({"type": "submit", "request": {"request_id": 7, "model": "m"}}),
        b"\x91" * 100_000,
    ],
    ids=["empty", "zero", "http", "pickle", "unknown", "wrong type", "deep"],
)
def test_what_is_no_call_is_a_bad_frame(body, capsys):
    with pytest.raises(BadFrame):
        frames.decode(body, frames.CALL)
    assert capsys.readouterr().out == ""


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_bad_frame(body):
    try:
        frames.decode(body, frames.CALL)
    except BadFrame:
        return


def test_a_part_that_is_not_known_is_a_bad_frame():
    with pytest.raises(BadFrame, match="part"):
        frames.chunks(News((("x", (1,), None, (("surprise", {}),)),)))


def test_a_reload_plan_is_the_same_on_the_other_side() -> None:
    plan = ReloadPlan(added=("a",), changed={"b": ("ttl_s", "pin")}, removed=("c",), after_restart=("port",))
    assert frames.result(frames.Reload(dry_run=True), frames.answer(plan)) == plan
