"""The body of POST /v1/chat/completions: messages with their parts, tools and calls. Calls nothing."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas.body import honoured, invalid, no_effect, only, refused
from forgellm.api.schemas.constraints import Function, ToolName, tools_of
from forgellm.api.schemas.openai import CACHE, DEFAULT_EFFORT, NO_ACCOUNT, UNLIMITED, Sampled, ToolChoiceWord, new_ids
from forgellm.errors import Unsupported
from forgellm.messages import Request, ThinkingBudget, Tokens, Tools, TopLogprobs

OnlyText = Annotated[str, Meta(extra_json_schema={"enum": ["text"]})]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a message's content. Only text can be used; of anything else, only the type is read."""

    type: OnlyText
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`arguments` is the text of a JSON object."""

    name: ToolName
    arguments: str


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that the model made in an earlier answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # some clients send back what they streamed


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn. The fields below `reasoning_content` are those of an earlier answer that is sent back as it came: they
    must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[Call, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None

    def to_turn(self, place: str) -> dict[str, Any]:
        """The turn as chat templates expect it: content as one text, arguments of calls as objects.

        `place` is where the message is, for errors. A developer's message is a system message to a template."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        turn["content"] = self._text(place)
        if self.tool_calls:
            calls = f"{place}.tool_calls"
            if self.role != "assistant":
                raise invalid(calls, "is the assistant's alone")
            turn["tool_calls"] = [_turn_call(call, f"{calls}[{i}]") for i, call in enumerate(self.tool_calls)]
        if self.role == "tool" and self.tool_call_id is None:
            raise invalid(f"{place}.tool_call_id", "is required: which call is this the result of?")
        also = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning_content}
        return turn | {name: value for name, value in also.items() if value is not None}

    def _text(self, place: str) -> str:
        if self.content is None:
            if self.role != "assistant":
                raise invalid(f"{place}.content", "is required")
            return ""
        if isinstance(self.content, str):
            return self.content
        for number, part in enumerate(self.content):
            field = f"{place}.content[{number}]"
            if part.type != "text":
                raise Unsupported(f"`{field}` is of type {part.type}; models here read text only", field=field)
            if part.text is None:
                raise invalid(f"{field}.text", "is required")
        return "".join(part.text or "" for part in self.content)


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `tools`."""

    function: Function
    type: Literal["function"]


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: ToolName


class NamedTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `tool_choice` that names the function to call."""

    function: NamedFunction
    type: Literal["function"]


class ChatBody(Sampled, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[
        tuple[Message, ...],
        Meta(min_length=1),
        honoured("the turns, rendered by the model's chat template; content is text, or text parts"),
    ]
    max_completion_tokens: Annotated[
        Tokens | None, honoured("longest answer; default: what the context length leaves room for")
    ] = None
    max_tokens: Annotated[Tokens | None, honoured("the older name of `max_completion_tokens`")] = None
    logprobs: Annotated[bool, honoured("the log probability of each token of the answer")] = False
    top_logprobs: Annotated[TopLogprobs | None, honoured("and of so many of the likeliest; needs `logprobs`")] = None
    tools: Annotated[tuple[Tool, ...], honoured("functions that the model may call")] = ()
    tool_choice: Annotated[
        ToolChoiceWord | NamedTool | None, honoured("`required` and a named function are enforced by a grammar")
    ] = None
    parallel_tool_calls: Annotated[bool, honoured("false: at most one call an answer")] = True
    reasoning_effort: Annotated[
        str | None,
        honoured(
            "given to the chat template under this name; other than `medium`, the default, it is refused where the "
            "template has no such word"
        ),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any], honoured("further variables of the chat template, such as `enable_thinking`")
    ] = {}  # noqa: RUF012 - msgspec copies it
    thinking_token_budget: Annotated[
        ThinkingBudget | None, honoured("so many tokens of reasoning, then its end is forced (vLLM's name)")
    ] = None
    continue_final_message: Annotated[
        bool, honoured("the last message, the assistant's, is gone on with: the answer is what follows (vLLM's name)")
    ] = False
    add_generation_prompt: Annotated[
        bool | None, honoured("goes with `continue_final_message`, and is its opposite (vLLM's name)")
    ] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, no_effect("there is one tier, which both words mean")
    ] = None
    safety_identifier: Annotated[str | None, no_effect(NO_ACCOUNT)] = None
    prompt_cache_key: Annotated[str | None, no_effect(CACHE)] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, no_effect(CACHE)] = None
    prompt_cache_retention: Annotated[str | None, no_effect(CACHE)] = None
    modalities: Annotated[list[str] | None, only(["text"], "models here write text only")] = None
    functions: Annotated[Any, refused("it was replaced by `tools`")] = None
    function_call: Annotated[Any, refused("it was replaced by `tool_choice`")] = None
    audio: Annotated[Any, refused("models here write text only")] = None
    prediction: Annotated[Any, refused("there is no speculative decoding: requests share one batch")] = None
    verbosity: Annotated[str | None, only("medium", "no model here has such a control; say it in the prompt")] = None
    web_search_options: Annotated[Any, refused("this server looks nothing up")] = None

    def __post_init__(self) -> None:
        self.check()
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs", "needs `logprobs`: true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise invalid("max_tokens", "and `max_completion_tokens` differ; give one")
        if "reasoning_effort" in self.chat_template_kwargs and self.reasoning_effort is not None:
            raise invalid("reasoning_effort", "is in `chat_template_kwargs` too; give one")
        if self.add_generation_prompt is not None and self.add_generation_prompt == self.continue_final_message:
            raise invalid("add_generation_prompt", "and `continue_final_message` must be opposites")
        if self.continue_final_message and (self.messages[-1].role != "assistant" or self.messages[-1].tool_calls):
            raise invalid("continue_final_message", "needs a text of the assistant's as the last message")
        self._turns()
        self._tools()

    @property
    def names(self) -> dict[str, str]:
        """See Sampled.names."""
        options = "chat_template_kwargs" if self.reasoning_effort is None else "reasoning_effort"
        return {**super().names, "prompt": "messages", "template_options": options}

    def to_requests(self) -> list[Request]:
        """One request a choice. Their ids are born here."""
        turns, tools, constraint = self._turns(), self._tools(), self.constraint()
        options = dict(self.chat_template_kwargs)
        hints: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            (hints if self.reasoning_effort == DEFAULT_EFFORT else options)["reasoning_effort"] = self.reasoning_effort
        longest = self.max_completion_tokens or self.max_tokens or UNLIMITED
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return [
            Request(
                request_id=request_id,
                model=self.model,
                messages=turns,
                template_options=options,
                template_hints=hints,
                tools=tools,
                constraint=constraint,
                thinking_budget=self.thinking_token_budget,
                continue_final=self.continue_final_message,
                sampling=self.sampling(longest, logprobs, choice),
            )
            for choice, request_id in enumerate(new_ids("chatcmpl", self.n))
        ]

    def _turns(self) -> tuple[dict[str, Any], ...]:
        return tuple(message.to_turn(f"messages[{number}]") for number, message in enumerate(self.messages))

    def _tools(self) -> Tools | None:
        choice = self.tool_choice
        return tools_of(
            [tool.function for tool in self.tools],
            choice if isinstance(choice, str) else None,
            choice.function.name if isinstance(choice, NamedTool) else None,
            parallel=self.parallel_tool_calls,
        )


def _turn_call(call: Call, place: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": object_of(call.function.arguments, f"{place}.function")}
    return {"id": call.id, "type": "function", "function": function}


def object_of(arguments: str, place: str) -> dict[str, Any]:
    """The arguments of a call, which clients send as the text of a JSON object; "" is an empty one."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise invalid(f"{place}.arguments", "must be the text of a JSON object")
    return value
