"""What Ollama's routes answer, as structs: they encode the answers, and describe them in /openapi.json. Data only."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from forgellm.api.schemas.openai_answers import TokenLogprob


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: dict[str, Any]


class ToolCall(msgspec.Struct, kw_only=True):
    """A whole call; in a stream, it comes when its last argument has."""

    function: CalledFunction
    id: str


class Message(msgspec.Struct, kw_only=True):
    content: str = ""
    role: str = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Answer(msgspec.Struct, kw_only=True):
    """An answer, or a line of one: the counts come with `done`. Durations in nanoseconds: `load_duration` is the time
    until a worker began, `prompt_eval_duration` that to the first token, `eval_duration` from there to the last."""

    model: str
    created_at: str
    done: bool = False
    done_reason: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET


class ChatAnswer(Answer, kw_only=True):
    message: Message


class GenerateAnswer(Answer, kw_only=True):
    response: str = ""
    thinking: str | UnsetType = UNSET


class Embedded(msgspec.Struct, kw_only=True):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OldEmbedded(msgspec.Struct, kw_only=True):
    embedding: list[float]


class Details(msgspec.Struct, kw_only=True):
    """`parameter_size` and `quantization_level` are known once a model is loaded, "" before."""

    format: str
    parameter_size: str
    quantization_level: str
    parent_model: str = ""
    family: str = ""
    families: list[str] | None = None


class Tag(msgspec.Struct, kw_only=True):
    """A model that can be asked for. `digest` changes when its files do; it is no sum of them."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(msgspec.Struct, kw_only=True):
    models: list[Tag]


class Loaded(msgspec.Struct, kw_only=True):
    """A loaded model. `size` is what its workers are charged for, `size_vram` what of it is on a GPU, in bytes.

    `expires_at`: when it is unloaded if nobody uses it, counted from now while somebody does; in the year 2300 if only
    an unload ends it."""

    name: str
    model: str
    size: int
    size_vram: int
    digest: str
    details: Details
    expires_at: str
    context_length: int


class Loadeds(msgspec.Struct, kw_only=True):
    models: list[Loaded]


class Progress(msgspec.Struct, kw_only=True):
    """A line of a pull, or what came of it. `digest` says which files: the hub's commit; `total` and `completed` are
    bytes of all of them together."""

    status: str
    digest: str | UnsetType = UNSET
    total: int | UnsetType = UNSET
    completed: int | UnsetType = UNSET


class Shown(msgspec.Struct, kw_only=True):
    """`capabilities` are those of the loaded model; of one that is not, what its task says."""

    modified_at: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    template: str = ""
    parameters: str = ""
    modelfile: str = ""


class Version(msgspec.Struct, kw_only=True):
    version: str
