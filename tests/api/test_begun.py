"""Which bodies go on with the last message, in each dialect, and which may not."""

from typing import Any

import msgspec
import pytest

from forgellm.api.schemas.anthropic import CountBody, MessagesBody
from forgellm.api.schemas.body import Body
from forgellm.api.schemas.ollama import OllamaChatBody
from forgellm.api.schemas.openai_chat import ChatBody
from forgellm.errors import InvalidRequest

USER = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "content": "so"}
CALL = {"function": {"name": "f", "arguments": {}}}
THOUGHT = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]


def goes_on(body: type[Body], *messages: dict[str, Any], **more: Any) -> bool:
    fields = {"model": "m", "messages": messages, **({"max_tokens": 9} if body is MessagesBody else {}), **more}
    (request,) = body.decode(msgspec.json.encode(fields), "application/json").to_requests()  # type: ignore[attr-defined]
    return bool(request.continue_final)


@pytest.mark.parametrize("body", [MessagesBody, CountBody, OllamaChatBody])
def test_a_text_of_the_assistants_at_the_end_is_gone_on_with(body: type[Body]) -> None:
    assert goes_on(body, USER, BEGUN)
    assert not goes_on(body, USER, BEGUN, USER)


def test_in_openais_dialect_it_is_asked_for() -> None:
    assert not goes_on(ChatBody, USER, BEGUN)
    assert not goes_on(ChatBody, USER, add_generation_prompt=True)
    assert goes_on(ChatBody, USER, BEGUN, continue_final_message=True)
    assert goes_on(ChatBody, USER, BEGUN, continue_final_message=True, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_in_openais_dialect_both_words_must_agree_and_fit_the_messages(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        goes_on(ChatBody, USER, **fields)
    assert caught.value.field == named


def test_thinking_before_the_text_and_no_text_at_all_may_be_gone_on_with() -> None:
    assert goes_on(MessagesBody, USER, {"role": "assistant", "content": THOUGHT}, thinking={"type": "adaptive"})
    assert goes_on(MessagesBody, USER, {"role": "assistant", "content": ""})


def test_with_ollama_what_is_no_text_is_a_turn_of_its_own() -> None:
    assert not goes_on(OllamaChatBody, USER, {"role": "assistant", "tool_calls": [CALL]})
    assert not goes_on(OllamaChatBody, USER, {"role": "assistant", "thinking": "hm"})
