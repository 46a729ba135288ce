"""What the OpenAI routes answer, as structs: they encode the answers, and describe them in /openapi.json. Data only."""

from typing import Any, Literal

import msgspec


class Answer(msgspec.Struct, kw_only=True):
    """Everything an OpenAI route sends; a field that is UNSET is left out."""


class TopLogprob(Answer):
    """A token: its text, its bytes (a token may be half a character), and its natural log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that was chosen, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(Answer):
    """`arguments` is JSON; of a stream, a piece of it. `name` comes with the first piece."""

    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ToolCall(Answer):
    function: CalledFunction
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET
    index: int | msgspec.UnsetType = msgspec.UNSET


class ChatMessage(Answer):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class Delta(Answer):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChunkChoice(Answer):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class PromptDetails(Answer):
    """`cached_tokens` of the prompt came from the prefix cache."""

    cached_tokens: int


class Usage(Answer):
    """Tokens. A prompt that has several choices counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(Answer):
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class ChatChunk(Answer):
    """One event. With `include_usage`, the last one has no choices and the counts; the others have null for them."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class TextLogprobs(Answer):
    """By token of the text; `text_offset` is where each begins in it, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(Answer):
    """Choice c of prompt p has the index p * n + c. In a stream, the reason comes with the last piece."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: TextLogprobs | None = None


class Completion(Answer):
    """A completion, or a chunk of one."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"


class Embedded(Answer):
    """The vector of one input, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    model: str
    data: list[Embedded]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class OutputDetails(Answer):
    """Tokens that were reasoning."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Response(Answer):
    """`output` holds messages, function calls and reasoning, in the order in which they were made. None is kept."""

    id: str
    created_at: int
    model: str
    instructions: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    reasoning: dict[str, str | None]
    metadata: dict[str, str]
    status: str = "in_progress"
    output: list[dict[str, Any]] = []
    usage: ResponseUsage | None = None
    incomplete_details: dict[str, str] | None = None
    error: dict[str, str] | None = None
    previous_response_id: None = None
    store: bool = False
    background: bool = False
    truncation: str = "disabled"
    object: Literal["response"] = "response"


class ResponseEvent(Answer):
    """One event; its other fields are those that OpenAI's documentation gives to its `type`."""

    type: str
    sequence_number: int


class Model(Answer):
    """A model that can be asked for. `created`: unix time of its files, 0 if it has none. `state`: see the life of a
    worker. `context_length` is known once it is loaded; so are `capabilities` ("completion", "chat", "tools" …), but
    for "completion" or "embedding", which its files say."""

    id: str
    created: int
    state: str
    context_length: int | None
    aliases: list[str]
    capabilities: list[str] | None
    object: Literal["model"] = "model"
    owned_by: str = "forgellm"


class Models(Answer):
    data: list[Model]
    object: Literal["list"] = "list"


class ErrorDetail(Answer):
    """`code` is one of the stable codes of docs/http-api.md; `param` names the field."""

    message: str
    type: str
    code: str
    param: str | None = None


class Error(Answer):
    error: ErrorDetail
