"""The bodies of POST /v1/messages and /v1/messages/count_tokens: blocks, tools and thinking. Calls nothing."""

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas import constraints
from forgellm.api.schemas.body import Body, Name, honoured, invalid, no_effect, only, refused
from forgellm.api.schemas.constraints import Function, ToolName, tools_of
from forgellm.errors import Unsupported
from forgellm.messages import Request, Sampling, Seed, Share, StopStrings, Temperature, Tokens, Tools, TopK

PARAGRAPH = "\n\n"  # between blocks of text of one turn, which clients send without a break of their own
_CACHE = "prefixes are found by their tokens, marked or not"
_ACCOUNT = "names the one who sends the request; nothing here depends on it"
_DEFAULT_EFFORT = "high"


class _Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """What every block may have. `cache_control` changes nothing: prefixes are found by their tokens."""

    cache_control: dict[str, Any] | None = None


class Text(_Block, frozen=True, kw_only=True, tag="text"):
    """`citations` are those of an earlier answer that is sent back: there are none."""

    text: str
    citations: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None


class Thinking(_Block, frozen=True, kw_only=True, tag="thinking"):
    """What the model thought in an earlier answer. `signature` is read by nobody: it is not the server that trusts."""

    thinking: str
    signature: str = ""


class RedactedThinking(_Block, frozen=True, kw_only=True, tag="redacted_thinking"):
    """Thinking of an earlier answer that only Anthropic can read; it is left out."""

    data: str


class ToolUse(_Block, frozen=True, kw_only=True, tag="tool_use"):
    """A call that the model made in an earlier answer; `caller` and `toolset_name` come back as they were sent."""

    id: str
    name: ToolName
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    toolset_name: None = None


class Unread(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image"):
    """What no model here can read; only its type is looked at."""


class Document(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="document"):
    """What no model here can read; only its type is looked at."""


class ToolResult(_Block, frozen=True, kw_only=True, tag="tool_result"):
    """What a call gave; the template has no word for `is_error`, so the text begins with `Error: `."""

    tool_use_id: str
    content: str | tuple[Text | Unread | Document, ...] = ""
    is_error: bool = False
    toolset_name: None = None


Content = str | tuple[Text | Thinking | RedactedThinking | ToolUse | ToolResult | Unread | Document, ...]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Content

    def turns(self, place: str) -> Iterator[dict[str, Any]]:
        """The turns that chat templates know: each result of a call is one of its own. `place` is for errors."""
        if isinstance(self.content, str):
            yield {"role": self.role, "content": self.content}
            return
        texts: list[str] = []
        also: dict[str, Any] = {}
        has_results = False
        for number, block in enumerate(self.content):
            where = f"{place}.content[{number}]"
            match block:
                case Text(text=text):
                    texts.append(text)
                case ToolResult():
                    _only_of("user", self.role, where, "tool_result")
                    if texts:
                        yield self._turn(texts, {})
                        texts = []
                    has_results = True
                    yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, where)}
                case ToolUse():
                    _only_of("assistant", self.role, where, "tool_use")
                    function = {"name": block.name, "arguments": block.input}
                    also.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
                case Thinking(thinking=thought):
                    _only_of("assistant", self.role, where, "thinking")
                    also["reasoning_content"] = also.get("reasoning_content", "") + thought
                case RedactedThinking():
                    _only_of("assistant", self.role, where, "redacted_thinking")
                case _:
                    raise _unread(where)
        if texts or also or not has_results:
            yield self._turn(texts, also)

    def _turn(self, texts: list[str], also: dict[str, Any]) -> dict[str, Any]:
        joint = "" if self.role == "assistant" else PARAGRAPH
        return {"role": self.role, "content": joint.join(texts), **also}


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A function that the model may call. `strict` and `eager_input_streaming` change nothing: calls are exact wherever
    they are enforced, and arguments are sent as they come."""

    name: ToolName
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tool` needs the name of one."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool = False


class ThinkingChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the model thinks before it answers. `display`: whether the answer has the thoughts, or an empty block."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted"] | None = None


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be taken out of a conversation before it is read."""

    type: str
    keep: Any = None


class ContextManagement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Only what takes nothing out, which Claude Code asks for: the thinking of all turns is kept."""

    edits: tuple[Edit, ...] = ()

    def check(self) -> None:
        """Raises Unsupported."""
        for number, edit in enumerate(self.edits):
            if edit.type != "clear_thinking_20251015" or edit.keep not in ("all", {"type": "all"}):
                place = f"context_management.edits[{number}]"
                says = "is not accepted: this server takes nothing out of a conversation; to keep all is what it does"
                raise Unsupported(f"`{place}` {says}", field=place)


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """JSON that a schema accepts."""

    schema: dict[str, Any]
    type: Literal["json_schema"]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`effort` is given to the chat template as `reasoning_effort`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountBody(Body, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: Annotated[Name, honoured("which model answers, or counts")]
    messages: Annotated[
        tuple[Message, ...],
        Meta(min_length=1),
        honoured(
            "the turns, rendered by the model's chat template; blocks of text, calls, their results and thinking; a "
            "text of the assistant's at the end is gone on with"
        ),
    ]
    system: Annotated[str | tuple[Text, ...], honoured("the first turn; several texts are paragraphs of one")] = ""
    tools: Annotated[tuple[Tool, ...], honoured("functions that the model may call; none of the server's own")] = ()
    tool_choice: Annotated[
        ToolChoice | None,
        honoured("`any` and `tool` are enforced by a grammar; `disable_parallel_tool_use`: at most one call"),
    ] = None
    thinking: Annotated[
        ThinkingChoice | None,
        honoured(
            "`enabled`, `adaptive` and `disabled`: given to the chat template as `enable_thinking`; `enabled` is "
            "refused where it has no such word, `adaptive` leaves it to the model; `budget_tokens`: so many tokens of "
            "thinking, then its end is forced; `display`: `summarized` sends it whole, `omitted` an empty block"
        ),
    ] = None
    output_config: Annotated[
        OutputConfig | None,
        honoured(
            "`format`: JSON of this schema; `effort`: for the chat template; other than `high`, the default, it is "
            "refused where there is no such word"
        ),
    ] = None
    cache_control: Annotated[dict[str, Any] | None, no_effect(_CACHE)] = None
    speed: Annotated[str | None, only("standard", "there is one speed")] = None
    context_management: Annotated[
        ContextManagement | None,
        honoured("`clear_thinking` that keeps all; nothing is ever taken out of a conversation"),
    ] = None
    mcp_servers: Annotated[Any, refused("this server calls no other; run the tools in the client")] = None
    user_profile_id: Annotated[str | None, no_effect(_ACCOUNT)] = None
    workspace_id: Annotated[str | None, no_effect(_ACCOUNT)] = None

    def __post_init__(self) -> None:
        self._turns()
        _ = self._continues
        self._tools()
        if self.context_management is not None:
            self.context_management.check()
        if self._thinking_budget is not None and self.thinking is not None and self.thinking.type != "enabled":
            raise invalid("thinking.budget_tokens", f'needs the type "enabled", not "{self.thinking.type}"')

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"

    @property
    def _thinking_budget(self) -> int | None:
        return self.thinking.budget_tokens if self.thinking is not None else None

    @property
    def names(self) -> dict[str, str]:
        """What this body calls the fields of Request, where it calls them otherwise."""
        is_told = self.thinking is not None and self.thinking.type != "adaptive"
        options = "thinking" if is_told else "output_config.effort"
        return {"template_options": options, "constraint": "output_config.format", "prompt": "messages"}

    def to_requests(self) -> list[Request]:
        """One request, which only counts. Its id is born here."""
        return [self._request("count", Sampling(), count_only=True)]

    def _request(self, prefix: str, sampling: Sampling, *, count_only: bool) -> Request:
        wanted = self.output_config.format if self.output_config is not None else None
        return Request(
            request_id=f"{prefix}_{uuid.uuid4().hex}",
            model=self.model,
            messages=self._turns(),
            template_options=self._template_options(),
            template_hints=self._template_hints(),
            tools=self._tools(),
            constraint=constraints.json_schema(wanted.schema) if wanted is not None else None,
            thinking_budget=self._thinking_budget,
            continue_final=self._continues,
            sampling=sampling,
            count_only=count_only,
        )

    def _turns(self) -> tuple[dict[str, Any], ...]:
        system = self.system if isinstance(self.system, str) else PARAGRAPH.join(text.text for text in self.system)
        turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for number, message in enumerate(self.messages):
            turns += message.turns(f"messages[{number}]")
        return tuple(turns)

    @property
    def _continues(self) -> bool:
        """Whether the answer is begun already. Raises InvalidRequest where it cannot be gone on with."""
        last = self.messages[-1]
        if last.role != "assistant":
            return False
        field = f"messages[{len(self.messages) - 1}]"
        blocks = (Text(text=last.content),) if isinstance(last.content, str) else last.content
        has_calls = any(isinstance(block, ToolUse) for block in blocks)
        if has_calls or not all(isinstance(block, Text) for block in blocks[-1:]):
            raise invalid(field, "is the assistant's and the last: it must end with text, to be gone on with")
        text = "".join(block.text for block in blocks if isinstance(block, Text))
        if text != text.rstrip():
            raise invalid(field, "is gone on with, so it cannot end with white space: a word's token begins with it")
        begun = f"cannot go with a last message of the assistant's (`{field}`): it is"
        if self.thinking is not None and self.thinking.type == "enabled":
            raise invalid("thinking", f"{begun} past its thinking")
        if self.output_config is not None and self.output_config.format is not None:
            raise invalid("output_config.format", f"{begun} begun already")
        return True

    def _tools(self) -> Tools | None:
        functions = [_function(tool, f"tools[{number}]") for number, tool in enumerate(self.tools)]
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise invalid("tool_choice", "needs a `name` if it is of type tool, and only then")
        words: dict[str, Literal["auto", "none", "required"]] = {"auto": "auto", "none": "none", "any": "required"}
        return tools_of(functions, words.get(choice.type), choice.name, parallel=not choice.disable_parallel_tool_use)

    def _template_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self.thinking is not None and self.thinking.type != "adaptive":
            options["enable_thinking"] = self.thinking.type == "enabled"
        if self._effort not in {None, _DEFAULT_EFFORT}:
            options["reasoning_effort"] = self._effort
        return options

    def _template_hints(self) -> dict[str, Any]:
        """What a template without the word does anyway: Claude Code sends both to every model."""
        hints: dict[str, Any] = {}
        if self.thinking is not None and self.thinking.type == "adaptive":
            hints["enable_thinking"] = True
        if self._effort == _DEFAULT_EFFORT:
            hints["reasoning_effort"] = self._effort
        return hints

    @property
    def _effort(self) -> str | None:
        return self.output_config.effort if self.output_config is not None else None


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Annotated[Tokens, honoured("longest answer")]
    stop_sequences: Annotated[
        StopStrings, honoured("the text ends before it; `stop_sequence` of the answer says which it was")
    ] = ()
    temperature: Annotated[Temperature, honoured("0 is greedy")] = 1.0
    top_p: Annotated[Share, honoured("the likeliest tokens that together have this probability; 1 is off")] = 1.0
    top_k: Annotated[TopK, honoured("the so many likeliest tokens; 0 is off")] = 0
    seed: Annotated[Seed | None, honoured("the same seed gives the same text; a field of this server's own")] = None
    stream: Annotated[bool, honoured("the answer as server-sent events")] = False
    metadata: Annotated[dict[str, Any] | None, no_effect(_ACCOUNT)] = None
    service_tier: Annotated[
        Literal["auto", "standard_only"] | None, no_effect("there is one tier, which both words mean")
    ] = None
    container: Annotated[Any, refused("this server runs no code of a model")] = None
    inference_geo: Annotated[Any, refused("the model runs where this server does")] = None

    def __post_init__(self) -> None:
        CountBody.__post_init__(self)
        budget = self._thinking_budget
        if budget is not None and budget >= self.max_tokens:
            says = f"is {budget}, which `max_tokens` ({self.max_tokens}) must be more than, to leave an answer room"
            raise invalid("thinking.budget_tokens", says)

    def to_requests(self) -> list[Request]:
        """One request. Its id is born here."""
        sampling = Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            seed=self.seed,
        )
        return [self._request("msg", sampling, count_only=False)]


def _function(tool: Tool, place: str) -> Function:
    if tool.type not in {None, "custom"}:
        says = f"is of type {tool.type}, which the server would have to run; only functions of the client are called"
        raise Unsupported(f"`{place}` {says}", field=place)
    if tool.input_schema is None:
        raise invalid(f"{place}.input_schema", "is required")
    return Function(name=tool.name, description=tool.description, parameters=tool.input_schema)


def _only_of(role: str, given: str, place: str, kind: str) -> None:
    if given != role:
        raise invalid(place, f"is of type {kind}, which is the {role}'s alone")


def _unread(place: str) -> Unsupported:
    return Unsupported(f"`{place}` is no text; models here read text only", field=place)


def _result(block: ToolResult, place: str) -> str:
    text = block.content
    if not isinstance(text, str):
        for number, part in enumerate(text):
            if not isinstance(part, Text):
                raise _unread(f"{place}.content[{number}]")
        text = PARAGRAPH.join(part.text for part in text if isinstance(part, Text))
    return f"Error: {text}" if block.is_error else text
