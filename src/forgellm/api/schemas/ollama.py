"""The bodies of Ollama's routes that ask a model for something: chat, generate, embed. Calls nothing."""

import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas import constraints
from forgellm.api.schemas.body import Body, Name, honoured, invalid, only, refused
from forgellm.api.schemas.constraints import Function, ToolName, tools_of
from forgellm.api.schemas.ollama_models import plain
from forgellm.api.schemas.ollama_options import NEVER_CUT, Options
from forgellm.errors import Unsupported
from forgellm.messages import Constraint, Request, Tools, TopLogprobs

MAX_INPUTS = 2048

Think = bool | Literal["low", "medium", "high", "max"]

_DURATION = re.compile(r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+|[+-]?0")
_PIECE = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 1e9


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`index` and `description` come back as some clients got them, and change nothing."""

    name: ToolName
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that the model made in an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. `images` must be empty: models here read text only."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: tuple[Any, ...] | None = None
    tool_calls: tuple[Call, ...] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def to_turn(self, place: str) -> dict[str, Any]:
        """The turn as chat templates expect it. `place` is where the message is, for errors."""
        if self.images:
            raise Unsupported(f"`{place}.images` are not accepted; models here read text only", field=f"{place}.images")
        if self.tool_calls and self.role != "assistant":
            raise invalid(f"{place}.tool_calls", "is the assistant's alone")
        if self.content is None and self.role != "assistant":
            raise invalid(f"{place}.content", "is required")
        turn: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            turn["tool_calls"] = [_turn_call(call) for call in self.tool_calls]
        also = {"name": self.tool_name, "tool_call_id": self.tool_call_id, "reasoning_content": self.thinking}
        return turn | {name: value for name, value in also.items() if value}


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `tools`."""

    function: Function
    type: Literal["function"] = "function"


class Asked(Body, frozen=True, kw_only=True):
    """What all bodies have. Several clients of Ollama send no Content-Type."""

    NEEDS_TYPE: ClassVar[bool] = False

    model: Annotated[Name, honoured("which model answers; `:latest` at its end means nothing")]
    keep_alive: Annotated[
        float | str | None,
        honoured(
            "how long the model stays loaded while idle, from now on: seconds, or a duration such as `5m`; 0: until it "
            "is done; negative: until somebody unloads it"
        ),
    ] = None

    @property
    def name(self) -> str:
        return plain(self.model)

    @property
    def keep_alive_s(self) -> float | None:
        """Raises InvalidRequest."""
        if self.keep_alive is None:
            return None
        seconds = _seconds(self.keep_alive) if isinstance(self.keep_alive, str) else self.keep_alive
        if not -_LONGEST_S <= seconds <= _LONGEST_S:
            raise invalid("keep_alive", f"is more than {_LONGEST_S:g} seconds; -1 is for ever")
        return seconds

    def load(self) -> Request:
        """The request that has the model loaded and generates nothing."""
        return Request(
            request_id=_new_id("load"), model=self.name, prompt=(0,), count_only=True, keep_alive_s=self.keep_alive_s
        )


class Generated(Asked, frozen=True, kw_only=True):
    """What chat and generate have in common."""

    PARTS: ClassVar[Mapping[str, type[Body]]] = {"options": Options}

    options: Annotated[dict[str, Any], honoured("each is honoured or refused by name; see below")] = {}  # noqa: RUF012 - msgspec copies it
    stream: Annotated[bool, honoured("the answer as lines of JSON")] = True
    format: Annotated[
        Literal["", "json"] | dict[str, Any],
        honoured("`json`, or a JSON schema: no token that breaks it is sampled"),
    ] = ""
    think: Annotated[
        Think | None,
        honoured(
            "given to the chat template as `enable_thinking`, a word as `reasoning_effort`; refused where it has "
            "no such word"
        ),
    ] = None
    logprobs: Annotated[bool, honoured("the log probability of each token of the answer")] = False
    top_logprobs: Annotated[TopLogprobs | None, honoured("and of so many of the likeliest; needs `logprobs`")] = None
    truncate: Annotated[bool | None, only(False, NEVER_CUT)] = None
    shift: Annotated[bool | None, only(False, "an answer ends with the context")] = None

    def check(self) -> None:
        """What a single field's type cannot say. Raises InvalidRequest."""
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "needs `logprobs`: true")
        self.sampled()
        _ = self.keep_alive_s

    @property
    def names(self) -> dict[str, str]:
        """What this body calls the fields of Request, where it calls them otherwise."""
        return {"template_options": "think", "constraint": "format", "context_length": "options.num_ctx"}

    def sampled(self) -> Options:
        """`options`, checked."""
        return Options.of(self.options, "options")

    def request(
        self,
        *,
        messages: tuple[Mapping[str, Any], ...] | None = None,
        prompt: str | None = None,
        tools: Tools | None = None,
        continue_final: bool = False,
    ) -> Request:
        """The request that asks this. Its id is born here."""
        options = self.sampled()
        return Request(
            request_id=_new_id("chat" if messages is not None else "gen"),
            model=self.name,
            messages=messages,
            prompt=prompt,
            tools=tools,
            continue_final=continue_final,
            template_options=self._template_options(),
            constraint=self._constraint(),
            context_length=options.num_ctx,
            sampling=options.sampling((self.top_logprobs or 0) if self.logprobs else None),
            keep_alive_s=self.keep_alive_s,
        )

    def _template_options(self) -> dict[str, Any]:
        if self.think is None:
            return {}
        return {"enable_thinking": self.think} if isinstance(self.think, bool) else {"reasoning_effort": self.think}

    def _constraint(self) -> Constraint | None:
        if self.format == "json":
            return constraints.json_object()
        return constraints.json_schema(self.format) if isinstance(self.format, dict) else None


class OllamaChatBody(Generated, frozen=True, kw_only=True):
    """POST /api/chat. Without messages, it loads the model."""

    messages: Annotated[
        tuple[Message, ...],
        honoured(
            "the turns, rendered by the model's chat template; a text of the assistant's at the end is gone on with"
        ),
    ] = ()
    tools: Annotated[tuple[Tool, ...], honoured("functions that the model may call")] = ()

    def __post_init__(self) -> None:
        self.check()
        self._turns()
        self._tools()

    @property
    def is_load(self) -> bool:
        return not self.messages

    def to_requests(self) -> list[Request]:
        """One request."""
        if self.is_load:
            return [self.load()]
        last = self.messages[-1]
        is_begun = last.role == "assistant" and bool(last.content) and not last.tool_calls
        return [self.request(messages=self._turns(), tools=self._tools(), continue_final=is_begun)]

    def _turns(self) -> tuple[dict[str, Any], ...]:
        return tuple(message.to_turn(f"messages[{number}]") for number, message in enumerate(self.messages))

    def _tools(self) -> Tools | None:
        return tools_of([tool.function for tool in self.tools], None, None, parallel=True)


class OllamaGenerateBody(Generated, frozen=True, kw_only=True):
    """POST /api/generate. Without a prompt, it loads the model, or unloads it if `keep_alive` is 0."""

    prompt: Annotated[str, honoured("what is answered")] = ""
    system: Annotated[str, honoured("what the conversation begins with; not with `raw`")] = ""
    raw: Annotated[bool, honoured("the prompt is continued as it is, without a chat template")] = False
    suffix: Annotated[
        str | None, only("", "a model here goes on after a prompt; it cannot fill in before a suffix")
    ] = None
    template: Annotated[str | None, only("", "the model's own chat template is used, or none with `raw`")] = None
    context: Annotated[tuple[int, ...] | None, only([], "no conversation is kept; send it to /api/chat")] = None
    images: Annotated[tuple[str, ...] | None, only([], "models here read text only")] = None

    def __post_init__(self) -> None:
        self.check()
        if self.raw and self.system:
            raise invalid("system", "needs the chat template, which `raw` leaves out")

    @property
    def is_load(self) -> bool:
        return not self.prompt

    def to_requests(self) -> list[Request]:
        """One request."""
        if self.is_load:
            return [self.load()]
        if self.raw:
            return [self.request(prompt=self.prompt)]
        system = ({"role": "system", "content": self.system},) if self.system else ()
        return [self.request(messages=(*system, {"role": "user", "content": self.prompt}))]


class EmbedBody(Asked, frozen=True, kw_only=True):
    """POST /api/embed."""

    input: Annotated[str | tuple[str, ...], honoured("a text, or several; a vector for each")]
    truncate: Annotated[bool, honoured("a text that is too long is cut; false: it is refused")] = True
    options: Annotated[dict[str, Any] | None, only({}, "a vector is computed, nothing is sampled")] = None
    dimensions: Annotated[Any, refused("a vector is as long as the model makes it")] = None

    def __post_init__(self) -> None:
        _ = self.keep_alive_s
        if not self.input or (len(self.input) > MAX_INPUTS and not isinstance(self.input, str)):
            raise invalid("input", f"must be a text, or 1 to {MAX_INPUTS} of them")

    def to_requests(self) -> list[Request]:
        """One request for all inputs. Its id is born here."""
        inputs = (self.input,) if isinstance(self.input, str) else self.input
        return [_embedding(self, inputs, truncate=self.truncate)]


class EmbeddingsBody(Asked, frozen=True, kw_only=True):
    """POST /api/embeddings, the older route."""

    prompt: Annotated[str, honoured("the text"), Meta(min_length=1)]
    options: Annotated[dict[str, Any] | None, only({}, "a vector is computed, nothing is sampled")] = None

    def __post_init__(self) -> None:
        _ = self.keep_alive_s

    def to_requests(self) -> list[Request]:
        """One request. Its id is born here."""
        return [_embedding(self, (self.prompt,), truncate=True)]


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _embedding(body: Asked, inputs: tuple[str, ...], *, truncate: bool) -> Request:
    return Request(
        request_id=_new_id("embd"),
        model=body.name,
        inputs=inputs,
        truncate=truncate,
        keep_alive_s=body.keep_alive_s,
    )


def _turn_call(call: Call) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {**({"id": call.id} if call.id else {}), "type": "function", "function": function}


def _seconds(text: str) -> float:
    """A duration as Go's time.ParseDuration reads it; "-1" is for ever, as Ollama has it."""
    if text == "-1":
        return -1.0
    if not _DURATION.fullmatch(text):
        raise invalid(
            "keep_alive", f'is {text[:40]!r}; give seconds as a number, or a duration such as "5m" or "1h30m"'
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PIECE.findall(text))
    return -seconds if text.startswith("-") else seconds
