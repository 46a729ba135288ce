"""The body of POST /v1/responses: items instead of messages, the rest as in chat. Calls nothing."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from forgellm.api.schemas import constraints
from forgellm.api.schemas.body import Body, Name, honoured, invalid, no_effect, only, refused
from forgellm.api.schemas.constraints import Function, ToolName, tools_of
from forgellm.api.schemas.openai import (
    CACHE,
    DEFAULT_EFFORT,
    NO_ACCOUNT,
    UNLIMITED,
    JsonObjectFormat,
    TextFormat,
    ToolChoiceWord,
    new_ids,
)
from forgellm.api.schemas.openai_chat import object_of
from forgellm.errors import Unsupported
from forgellm.messages import (
    Constraint,
    RepetitionPenalty,
    Request,
    Sampling,
    Seed,
    Share,
    StopString,
    StopStrings,
    Temperature,
    Tokens,
    Tools,
    TopK,
    TopLogprobs,
)

NO_MEMORY = "no answer is kept; send the whole conversation in `input`"
TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text")
TextPart = Annotated[str, Meta(extra_json_schema={"enum": list(TEXT_PARTS)})]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an item's content. Only text can be used; of anything else, only the type is read."""

    type: TextPart
    text: str | None = None


Content = str | tuple[Part, ...]


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message, a call, the result of one, or reasoning: new, or out of an earlier answer, sent back as it came."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: ToolName | None = None
    arguments: str | None = None
    output: Content | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    summary: tuple[Any, ...] = ()
    encrypted_content: None = None
    phase: str | None = None
    namespace: str | None = None  # of the function that was called


class SchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that `schema` accepts. `name`, `description` and `strict` change nothing: it is always exact."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No model here has a control of its verbosity; "medium" is what OpenAI's have without."""

    verbosity: Literal["medium"] | None = None
    format: TextFormat | JsonObjectFormat | SchemaFormat = TextFormat()


class ReasoningOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`effort` is given to the chat template. No model here makes a summary of its reasoning: "auto" gets none."""

    effort: str | None = None
    summary: Literal["auto"] | None = None


class FlatTool(Function, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A function that the model may call."""


class Namespace(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="namespace"
):
    """Functions under one name, as Codex sends those of MCP servers. The model is told of each as NAMESPACE__NAME; its
    calls come back with the two apart."""

    name: ToolName
    tools: tuple[FlatTool, ...]
    description: str | None = None


class WebSearch(msgspec.Struct, frozen=True, tag_field="type", tag="web_search"):
    """A tool that OpenAI would run. Codex offers it beside functions, always: the model is not told of it, and `tools`
    of the answer does not list it."""


class ImageGeneration(msgspec.Struct, frozen=True, tag_field="type", tag="image_generation"):
    """The same."""


class FlatName(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: ToolName


Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseBody(Body, frozen=True, kw_only=True):
    """POST /v1/responses."""

    model: Annotated[Name, honoured("which model answers")]
    input: Annotated[
        str | Annotated[tuple[Item, ...], Meta(min_length=1)],
        honoured("a text, or items: messages, calls, their results, reasoning"),
    ]
    instructions: Annotated[str | None, honoured("a system message before all others")] = None
    max_output_tokens: Annotated[
        Tokens | None, honoured("longest answer; default: what the context length leaves room for")
    ] = None
    temperature: Annotated[Temperature, honoured("0 is greedy")] = 1.0
    top_p: Annotated[Share, honoured("the likeliest tokens that together have this probability; 1 is off")] = 1.0
    stream: Annotated[bool, honoured("the answer as server-sent events")] = False
    text: Annotated[TextOptions, honoured("`format`: `json_object` or `json_schema` are enforced")] = TextOptions()
    tools: Annotated[
        tuple[FlatTool | Namespace | WebSearch | ImageGeneration, ...],
        honoured(
            "functions that the model may call, in namespaces too; `web_search` and `image_generation` are taken "
            "beside functions, but not offered to the model, and `tools` of the answer leaves them out"
        ),
    ] = ()
    tool_choice: Annotated[
        ToolChoiceWord | FlatName | None, honoured("`required` and a named function are enforced by a grammar")
    ] = None
    parallel_tool_calls: Annotated[bool, honoured("false: at most one call an answer")] = True
    reasoning: Annotated[
        ReasoningOptions | None, honoured("`effort` is given to the chat template as `reasoning_effort`")
    ] = None
    include: Annotated[
        tuple[Include, ...],
        honoured("`message.output_text.logprobs`; reasoning is never encrypted, so including it adds nothing"),
    ] = ()
    top_logprobs: Annotated[TopLogprobs | None, honoured("the log probability of each token, and of so many more")] = (
        None
    )
    metadata: Annotated[dict[str, str], no_effect("it comes back with the response")] = {}  # noqa: RUF012 - msgspec copies
    seed: Annotated[Seed | None, honoured("the same seed gives the same text, alone or in a batch")] = None
    stop: Annotated[StopString | StopStrings, honoured("the text ends before it; it may span tokens")] = ()
    top_k: Annotated[TopK, honoured("the so many likeliest tokens; 0 is off")] = 0
    min_p: Annotated[Share, honoured("tokens at least so likely as this share of the likeliest one; 0 is off")] = 0.0
    repetition_penalty: Annotated[RepetitionPenalty, honoured("divides the logit of tokens that came; 1 is off")] = 1.0
    store: Annotated[bool | None, only(False, NO_MEMORY)] = None
    background: Annotated[bool | None, only(False, "an answer is sent to the one who asks, or not made")] = None
    truncation: Annotated[str | None, only("disabled", "what does not fit the context is an error")] = None
    user: Annotated[str | None, no_effect(NO_ACCOUNT)] = None
    safety_identifier: Annotated[str | None, no_effect(NO_ACCOUNT)] = None
    prompt_cache_key: Annotated[str | None, no_effect(CACHE)] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, no_effect(CACHE)] = None
    prompt_cache_retention: Annotated[str | None, no_effect(CACHE)] = None
    client_metadata: Annotated[dict[str, Any] | None, no_effect(NO_ACCOUNT)] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, no_effect("there is one tier, which both words mean")
    ] = None
    stream_options: Annotated[
        dict[str, Any] | None, only({"include_obfuscation": False}, "events are never padded")
    ] = None
    previous_response_id: Annotated[Any, refused(NO_MEMORY)] = None
    conversation: Annotated[Any, refused(NO_MEMORY)] = None
    prompt: Annotated[Any, refused("no prompts are kept; send its text")] = None
    max_tool_calls: Annotated[Any, refused("it limits built-in tools, and there are none")] = None

    def __post_init__(self) -> None:
        self._turns()
        self._tools()

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens come with each; None: no log probabilities at all."""
        if self.top_logprobs is not None or "message.output_text.logprobs" in self.include:
            return self.top_logprobs or 0
        return None

    @property
    def names(self) -> dict[str, str]:
        """What this body calls the fields of Request, where it calls them otherwise."""
        return {"prompt": "input", "messages": "input", "constraint": "text.format", "template_options": "reasoning"}

    def to_requests(self) -> list[Request]:
        """The one request. Its id is born here."""
        effort = self.reasoning.effort if self.reasoning else None
        thinking = {} if effort is None else {"reasoning_effort": effort}
        is_default = effort == DEFAULT_EFFORT
        (request_id,) = new_ids("resp", 1)
        return [
            Request(
                request_id=request_id,
                model=self.model,
                messages=self._turns(),
                template_options={} if is_default else thinking,
                template_hints=thinking if is_default else {},
                tools=self._tools(),
                constraint=self._constraint(),
                sampling=Sampling(
                    max_tokens=self.max_output_tokens or UNLIMITED,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    top_k=self.top_k,
                    min_p=self.min_p,
                    repetition_penalty=self.repetition_penalty,
                    stop=(self.stop,) if isinstance(self.stop, str) else self.stop,
                    seed=self.seed,
                    logprobs=self.logprobs,
                ),
            )
        ]

    def _constraint(self) -> Constraint | None:
        wanted = self.text.format
        if isinstance(wanted, SchemaFormat):
            return constraints.json_schema(wanted.schema)
        return constraints.json_object() if isinstance(wanted, JsonObjectFormat) else None

    def _tools(self) -> Tools | None:
        choice = self.tool_choice
        if self.tools and not self.offered:
            raise Unsupported("`tools` holds only what this server would have to run; give functions", field="tools")
        functions: list[Function] = []
        for tool in self.offered:
            if isinstance(tool, Namespace):
                functions += (replace(each, name=flat_name(tool.name, each.name)) for each in tool.tools)
            else:
                functions.append(tool)
        return tools_of(
            functions,
            choice if isinstance(choice, str) else None,
            choice.name if isinstance(choice, FlatName) else None,
            parallel=self.parallel_tool_calls,
        )

    @property
    def offered(self) -> tuple[FlatTool | Namespace, ...]:
        """The tools that the model is told of."""
        return tuple(tool for tool in self.tools if isinstance(tool, FlatTool | Namespace))

    @property
    def namespaced(self) -> dict[str, tuple[str, str]]:
        """(namespace, name) of each function in one, by the name that the model knows."""
        spaces = [tool for tool in self.offered if isinstance(tool, Namespace)]
        return {flat_name(space.name, each.name): (space.name, each.name) for space in spaces for each in space.tools}

    def _turns(self) -> tuple[dict[str, Any], ...]:
        turns: list[dict[str, Any]] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return (*turns, {"role": "user", "content": self.input})
        reasoning = ""
        for number, item in enumerate(self.input):
            place = f"input[{number}]"
            if item.type == "reasoning":
                reasoning += _text(item.content or "", f"{place}.content")
                continue
            if item.type == "function_call":
                if not turns or turns[-1]["role"] != "assistant":
                    turns.append({"role": "assistant", "content": ""})
                turns[-1].setdefault("tool_calls", []).append(_call(item, place))
            else:
                turns.append(_result(item, place) if item.type == "function_call_output" else _message(item, place))
            if reasoning and turns[-1]["role"] == "assistant":
                turns[-1]["reasoning_content"], reasoning = reasoning, ""
        if not turns:
            raise invalid("input", "has nothing to answer")
        return tuple(turns)


def flat_name(namespace: str, name: str) -> str:
    """What the model calls a function of a namespace."""
    return f"{namespace.rstrip('_')}__{name}"


def _message(item: Item, place: str) -> dict[str, Any]:
    if item.role is None:
        raise invalid(f"{place}.role", "is required")
    if item.content is None:
        raise invalid(f"{place}.content", "is required")
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _text(item.content, f"{place}.content")}


def _call(item: Item, place: str) -> dict[str, Any]:
    if item.call_id is None or item.name is None:
        missing = "call_id" if item.call_id is None else "name"
        raise invalid(f"{place}.{missing}", "is required")
    name = item.name if item.namespace is None else flat_name(item.namespace, item.name)
    function = {"name": name, "arguments": object_of(item.arguments or "", place)}
    return {"id": item.call_id, "type": "function", "function": function}


def _result(item: Item, place: str) -> dict[str, Any]:
    if item.call_id is None or item.output is None:
        missing = "call_id" if item.call_id is None else "output"
        raise invalid(f"{place}.{missing}", "is required")
    return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, f"{place}.output")}


def _text(content: Content, place: str) -> str:
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        field = f"{place}[{number}]"
        if part.type not in TEXT_PARTS:
            raise Unsupported(f"`{field}` is of type {part.type}; models here read text only", field=field)
        if part.text is None:
            raise invalid(f"{field}.text", "is required")
    return "".join(part.text or "" for part in content)
