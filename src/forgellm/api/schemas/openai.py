"""What all bodies of the OpenAI dialect share: how the answer is sampled, constrained and streamed. Calls nothing."""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from forgellm import typed
from forgellm.api.schemas import constraints
from forgellm.api.schemas.body import Body, Name, honoured, invalid, no_effect, only
from forgellm.messages import (
    Bias,
    Constraint,
    Penalty,
    RepetitionPenalty,
    Sampling,
    Seed,
    Share,
    StopString,
    StopStrings,
    Temperature,
    TokenId,
    TopK,
)

UNLIMITED = 2**31 - 1  # tokens; the worker cuts an answer to what the context length leaves room for
MAX_CHOICES = 32
_SEEDS = 2**63

NO_ACCOUNT = "names or sorts requests for the one who sends them; nothing here depends on it"
CACHE = "prefixes are found by their tokens"
DEFAULT_EFFORT = "medium"  # OpenAI's; a template without the word does what it does
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
LogitBias = dict[str, Bias]


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of `response_format`. `name`, `description` and `strict` change nothing: it is always exact."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that a schema accepts."""

    json_schema: JsonSchema


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The guided_* fields under the names that vLLM gave them later."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: constraints.Choices | None = None
    grammar: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`include_usage`: one chunk more, before the end, with the counts of the whole request.
    Chunks are never padded."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(Body, frozen=True, kw_only=True):
    """The fields that chat and plain completions have in common."""

    model: Annotated[Name, honoured("which model answers")]
    temperature: Annotated[Temperature, honoured("0 is greedy")] = 1.0
    top_p: Annotated[Share, honoured("the likeliest tokens that together have this probability; 1 is off")] = 1.0
    n: Annotated[
        Choices,
        honoured("so many choices: choice i is the answer to the same request with the seed `seed` + i"),
    ] = 1
    stop: Annotated[StopString | StopStrings, honoured("the text ends before it; it may span tokens")] = ()
    seed: Annotated[Seed | None, honoured("the same seed gives the same text, alone or in a batch")] = None
    presence_penalty: Annotated[Penalty, honoured("taken from the logit of every token of the text so far")] = 0.0
    frequency_penalty: Annotated[Penalty, honoured("the same, times how often it came")] = 0.0
    logit_bias: Annotated[LogitBias, honoured("token id → what is added to its logit")] = {}  # noqa: RUF012 - msgspec copies it
    stream: Annotated[bool, honoured("the answer as server-sent events")] = False
    stream_options: Annotated[
        StreamOptions | None, honoured("`include_usage`: a last chunk with the counts; only with `stream`")
    ] = None
    response_format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat,
        honoured("`json_object`, or `json_schema` with a schema: no token that breaks it is sampled"),
    ] = TextFormat()
    guided_json: Annotated[str | dict[str, Any] | None, honoured("the answer is JSON of this schema (vLLM's name)")] = (
        None
    )
    guided_regex: Annotated[str | None, honoured("the whole answer matches it")] = None
    guided_choice: Annotated[constraints.Choices | None, honoured("the answer is one of these texts")] = None
    guided_grammar: Annotated[str | None, honoured("the answer is of this grammar, in llguidance's Lark")] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, honoured("`json`, `regex`, `choice` or `grammar`: as the guided_* fields")
    ] = None
    top_k: Annotated[TopK, honoured("the so many likeliest tokens; 0 is off")] = 0
    min_p: Annotated[Share, honoured("tokens at least so likely as this share of the likeliest one; 0 is off")] = 0.0
    repetition_penalty: Annotated[RepetitionPenalty, honoured("divides the logit of tokens that came; 1 is off")] = 1.0
    user: Annotated[str | None, no_effect(NO_ACCOUNT)] = None
    metadata: Annotated[dict[str, str] | None, no_effect(NO_ACCOUNT)] = None
    store: Annotated[bool | None, only(False, "no answer is kept")] = None

    def check(self) -> None:
        """What a single field's type cannot say. Raises InvalidRequest."""
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "needs `stream`: true")
        bias_of(self.logit_bias)
        self.constraint()

    def constraint(self) -> Constraint | None:
        """What the answer must look like."""
        return constraints.single(self._constraints())

    @property
    def names(self) -> dict[str, str]:
        """What this body calls the fields of Request, where it calls them otherwise."""
        found = self._constraints()
        return {"constraint": found[0][0]} if found else {}

    def _constraints(self) -> list[constraints.Named]:
        found = constraints.guided(
            "guided_", self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar
        )
        if self.structured_outputs is not None:
            also = self.structured_outputs
            found += constraints.guided("structured_outputs.", also.json, also.regex, also.choice, also.grammar)
        wanted = self.response_format
        if isinstance(wanted, JsonSchemaFormat):
            found.append(("response_format", constraints.json_schema(wanted.json_schema.schema)))
        elif isinstance(wanted, JsonObjectFormat):
            found.append(("response_format", constraints.json_object()))
        return found

    def sampling(self, max_tokens: int, logprobs: int | None, choice: int) -> Sampling:
        """How choice number `choice` is sampled."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=bias_of(self.logit_bias),
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop,
            seed=None if self.seed is None else (self.seed + choice) % _SEEDS,
            logprobs=logprobs,
        )


def bias_of(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """`logit_bias` by token id; JSON has only strings for keys."""
    found: list[tuple[int, float]] = []
    for key, bias in given.items():
        try:
            found.append((typed.convert(key, TokenId, strict=False), bias))
        except msgspec.ValidationError as error:
            raise invalid("logit_bias", f"has the key {key!r}, which is no token id") from error
    return tuple(found)


def new_ids(prefix: str, count: int) -> list[str]:
    """Ids of the requests that one HTTP request becomes; the first names them all."""
    first = f"{prefix}-{uuid.uuid4().hex}"
    return [first, *(f"{first}-{number}" for number in range(1, count))]


ToolChoiceWord = Literal["auto", "none", "required"]
