"""What the Anthropic routes answer, as structs: they encode the answers, and describe them. Data only."""

from typing import Any, Literal

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class Usage(msgspec.Struct, kw_only=True):
    """Tokens. `input_tokens` are those of the prompt that did not come from the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class Message(msgspec.Struct, kw_only=True):
    """`content` holds blocks: thinking, text and tool_use, in the order in which they were made."""

    id: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class MessageEvent(msgspec.Struct, kw_only=True):
    """One event; its other fields are those that Anthropic's documentation gives to its `type`."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
        "error",
    ]


class TokenCount(msgspec.Struct, kw_only=True):
    """Tokens of the prompt, as the model's own tokenizer and chat template make them."""

    input_tokens: int


class ErrorDetail(msgspec.Struct, kw_only=True):
    """`type` is Anthropic's word, `code` one of the stable codes of docs/http-api.md; `param` names the field."""

    type: str
    message: str
    code: str
    param: str | None = None


class AnthropicError(msgspec.Struct, kw_only=True):
    error: ErrorDetail
    type: Literal["error"] = "error"
