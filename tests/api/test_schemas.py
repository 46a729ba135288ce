"""Bad bodies are refused with the field's name; good ones become exactly what the contract says."""

import msgspec
import pytest

from forgellm.api.schemas import GenerateBody, LoadBody, UnloadBody
from forgellm.errors import EmptyPrompt, InvalidRequest, Unsupported
from forgellm.messages import Sampling, Timeouts

JSON = "application/json"


def generate(raw: str | bytes) -> GenerateBody:
    return GenerateBody.decode(raw if isinstance(raw, bytes) else raw.encode(), JSON)


def test_the_defaults_are_those_of_the_contract():
    request = generate('{"prompt": "hi"}').to_request("m", None)
    assert request.sampling == Sampling(max_tokens=100, temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    assert request.messages == ({"role": "user", "content": "hi"},)
    assert request.template is None
    assert request.max_kv_size is None


def test_timeouts_reach_the_request():
    body = '{"prompt": "hi", "timeout_s": 2.5, "queue_timeout_s": 0, "first_token_timeout_s": 3, "token_timeout_s": 4}'
    request = generate(body).to_request("m", None)
    assert request.timeouts == Timeouts(total_s=2.5, queue_s=0.0, first_token_s=3.0, token_s=4.0)
    for bad in ("-1", "1e99", '"5"'):
        with pytest.raises(InvalidRequest) as caught:
            generate(f'{{"prompt": "hi", "timeout_s": {bad}}}')
        assert caught.value.field == "timeout_s"


def test_null_means_the_default():
    """Clients of 0.4.7 send every field, most of them null."""
    nulls = dict.fromkeys(name for name in GenerateBody.__struct_fields__ if name != "prompt")
    assert generate(msgspec.json.encode({"prompt": "hi", **nulls})) == generate('{"prompt": "hi"}')


def test_aliases_are_other_names_of_the_same_field():
    assert generate('{"prompt": "hi", "stream": true, "model_name": "m"}') == generate(
        '{"prompt": "hi", "streaming": true, "model": "m"}'
    )
    body = LoadBody.decode(b'{"model": "m", "adapter": "a"}', JSON)
    assert (body.model_name, body.adapter_path) == ("m", "a")


def test_two_names_of_one_field_must_agree():
    assert generate('{"prompt": "hi", "stream": true, "streaming": true}').streaming
    with pytest.raises(InvalidRequest, match="differ") as caught:
        generate('{"prompt": "hi", "stream": true, "streaming": false}')
    assert caught.value.field == "streaming"


def test_an_unknown_field_is_named_and_the_accepted_ones_are_listed():
    with pytest.raises(InvalidRequest, match=r"unknown field `max_token`; accepted: .*max_tokens") as caught:
        generate('{"prompt": "hi", "max_token": 5}')
    assert caught.value.field == "max_token"


@pytest.mark.parametrize("cls", [GenerateBody, LoadBody, UnloadBody])
def test_chaos_054_no_body_can_ask_for_remote_code(cls):
    with pytest.raises(InvalidRequest, match="never run") as caught:
        cls.decode(b'{"trust_remote_code": true}', JSON)
    assert caught.value.field == "trust_remote_code"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "0"),
        ("max_tokens", "-1"),
        ("max_tokens", str(2**63)),
        ("max_tokens", "1.5"),
        ("max_tokens", "true"),
        ("max_tokens", '"5"'),
        ("temperature", "-1"),
        ("temperature", "1e308"),
        ("top_p", "2"),
        ("top_p", "-0.1"),
        ("top_k", "-1"),
        ("min_p", "1.1"),
        ("repetition_penalty", "0"),
        ("stop", '""'),
        ("stop", "5"),
        ("seed", str(2**70)),
        ("seed", "-1"),
        ("max_kv_size", "0"),
        ("is_base_model", '"yes"'),
        ("streaming", "1"),
        ("history", '"hi"'),
        ("system_prompt", "[]"),
        ("model", '""'),
        ("model", '"' + "m" * 10_000 + '"'),
    ],
)
def test_chaos_059_a_value_out_of_bounds_is_refused_by_name(field, value):
    with pytest.raises(InvalidRequest) as caught:
        generate(f'{{"prompt": "hi", "{field}": {value}}}')
    assert caught.value.field == field
    assert f"`{field}`" in caught.value.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"prompt": "hi", "stop": ["a", ""]}', "stop[1]"),
        ('{"prompt": "hi", "stop": [' + ",".join(['"x"'] * 10_000) + "]}", "stop"),
        ('{"prompt": "hi", "history": [{"role": "user"}]}', "history[0].content"),
        ('{"prompt": "hi", "history": [{"role": "tool", "content": "x"}]}', "history[0].role"),
        ('{"prompt": "hi", "history": [{"role": "user", "content": "x", "name": "y"}]}', "history[0]"),
        ("{}", "prompt"),
        ('{"prompt": null}', "prompt"),
        ('{"prompt": 5}', "prompt"),
    ],
)
def test_a_mistake_deep_in_the_body_is_found_by_its_path(body, field):
    with pytest.raises(InvalidRequest) as caught:
        generate(body)
    assert caught.value.field == field


def test_chaos_060_an_empty_prompt_has_a_code_of_its_own():
    with pytest.raises(EmptyPrompt) as caught:
        generate('{"prompt": ""}')
    assert (caught.value.code, caught.value.field) == ("empty", "prompt")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", r"\(byte 0\)"),
        (b'{"prompt": ', r"\(byte 11\)"),
        (b'{"prompt": "hi"} x', r"\(byte 18\)"),
        (b'{"prompt": "hi", "seed": NaN}', r"\(byte 25\)"),
        (b'{"prompt": "hi", "seed": Infinity}', r"\(byte 25\)"),
        (b'{"prompt": "hi", "temperature": 1e400}', "out of range"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"prompt": "\xff"}', r"not UTF-8 \(byte 12\)"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'["prompt"]', "must be a JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "`prompt` twice"),
        (b'{"prompt": "a", "history": [{"role": "user", "role": "user"}]}', "`role` twice"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
    ],
)
def test_chaos_058_bytes_that_are_not_one_clean_json_object_are_refused_with_the_place(raw, says):
    with pytest.raises(InvalidRequest, match=says):
        generate(raw)


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded"])
def test_chaos_058_only_json_is_read(content_type):
    """A web page can post text/plain to any server without asking; it cannot post JSON."""
    with pytest.raises(InvalidRequest, match="application/json"):
        GenerateBody.decode(b'{"prompt": "hi"}', content_type)


def test_a_charset_after_the_content_type_is_fine():
    assert GenerateBody.decode(b'{"prompt": "hi"}', "application/JSON; charset=utf-8").prompt == "hi"


def test_chaos_061_a_compressed_body_is_refused_unread():
    with pytest.raises(InvalidRequest, match="gzip"):
        GenerateBody.decode(b"bomb", JSON, "gzip")


def test_the_system_prompt_of_the_load_counts_until_the_request_has_its_own():
    def roles(raw: str) -> list[str]:
        messages = generate(raw).to_request("m", "kept").messages
        return [f"{m['role']}={m['content']}" for m in messages or ()]

    assert roles('{"prompt": "hi"}') == ["system=kept", "user=hi"]
    assert roles('{"prompt": "hi", "system_prompt": "own"}') == ["system=own", "user=hi"]
    assert roles('{"prompt": "hi", "system_prompt": ""}') == ["user=hi"]
    assert roles('{"prompt": "hi", "history": [{"role": "system", "content": "old"}]}') == ["system=old", "user=hi"]


@pytest.mark.parametrize(("given", "template"), [("null", None), ("true", False), ("false", True)])
def test_is_base_model_decides_about_the_chat_template(given, template):
    assert generate(f'{{"prompt": "hi", "is_base_model": {given}}}').to_request("m", None).template is template


@pytest.mark.parametrize(("given", "stop"), [('"END"', ("END",)), ('["a", "b"]', ("a", "b")), ("[]", ())])
def test_stop_is_a_string_or_a_list(given, stop):
    assert generate(f'{{"prompt": "hi", "stop": {given}}}').to_request("m", None).sampling.stop == stop


def test_each_request_has_an_id_of_its_own():
    body = generate('{"prompt": "hi"}')
    assert body.to_request("m", None).request_id != body.to_request("m", None).request_id


def test_a_load_without_a_name_is_refused_and_an_adapter_is_enough():
    with pytest.raises(InvalidRequest) as caught:
        LoadBody.decode(b"{}", JSON)
    assert caught.value.field == "model_name"
    assert LoadBody.decode(b'{"adapter_path": "/a"}', JSON).adapter_path == "/a"


def test_a_draft_model_is_refused_not_ignored():
    with pytest.raises(Unsupported) as caught:
        LoadBody.decode(b'{"model": "m", "draft_model": "d"}', JSON)
    assert caught.value.field == "draft_model"
    assert LoadBody.decode(b'{"model": "m", "draft_model": null}', JSON).draft_model is None
