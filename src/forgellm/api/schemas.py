"""Request bodies: what each may hold, and the only validation. Turns bytes into checked values; calls nothing.

Bounds refuse what no model can honour; what only a loaded model knows (its context length) is checked in its worker.
"""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import msgspec
from msgspec import Meta

from forgellm.errors import EmptyPrompt, InvalidRequest, Unsupported
from forgellm.messages import (
    RepetitionPenalty,
    Request,
    Sampling,
    Seed,
    Share,
    StopString,
    StopStrings,
    Temperature,
    Timeouts,
    TimeoutSeconds,
    Tokens,
    TopK,
)
from forgellm.supervisor.orders import LoadOptions

Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object. `null` means the default; a field that is not listed is refused."""

    ALIASES: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def decode(cls, raw: bytes, content_type: str | None, content_encoding: str | None = None) -> Self:
        """The checked body. Raises InvalidRequest naming the field, or the byte where the JSON breaks."""
        if content_encoding not in {None, "", "identity"}:
            raise InvalidRequest(f"Content-Encoding {content_encoding} is not accepted; send the body uncompressed")
        media_type = (content_type or "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            given = f"not {media_type}" if media_type else "which is missing"
            raise InvalidRequest(f"the Content-Type must be application/json, {given}")
        return _convert(cls, cls._named(_parse(raw)))

    @classmethod
    def _named(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`values` by their proper names, without nulls."""
        found: dict[str, Any] = {}
        for given, value in values.items():
            name = cls.ALIASES.get(given, given)
            if name == "trust_remote_code":
                raise InvalidRequest("code from a model folder is never run; a request cannot change that", field=name)
            if name not in cls.__struct_fields__:
                accepted = ", ".join(sorted((*cls.__struct_fields__, *cls.ALIASES)))
                raise InvalidRequest(f"unknown field `{given}`; accepted: {accepted}", field=given)
            if value is None:
                continue
            if name in found and found[name] != value:
                raise InvalidRequest(f"`{given}` and another name of the same field differ; give one", field=given)
            found[name] = value
        return found


class LoadBody(Body, frozen=True, kw_only=True):
    """POST /api/model/load."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model": "model_name", "adapter": "adapter_path"}

    model_name: Name | None = None
    adapter_path: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    wait: bool = False
    system_prompt: str | None = None
    ttl_s: Seconds | None = None
    pin: bool | None = None
    replicas: Annotated[int, Meta(ge=1, le=64)] | None = None
    max_kv_size: Tokens | None = None
    context_length: Tokens | None = None
    draft_model: str | None = None

    def __post_init__(self) -> None:
        if self.draft_model is not None:
            message = "speculative decoding is not available: requests share one batch; leave `draft_model` out"
            raise Unsupported(message, field="draft_model")
        if self.model_name is None and self.adapter_path is None:
            raise InvalidRequest("`model_name` is required (or `adapter_path`, for its base model)", field="model_name")

    def options(self) -> LoadOptions:
        """All but the name and `wait`, for the pool."""
        return LoadOptions(
            adapter_path=self.adapter_path,
            context_length=self.context_length,
            max_kv_size=self.max_kv_size,
            replicas=self.replicas,
            ttl_s=self.ttl_s,
            pin=self.pin,
            system_prompt=self.system_prompt,
        )


class UnloadBody(Body, frozen=True, kw_only=True):
    """POST /api/model/unload; the body may be missing."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model": "model_name"}

    model_name: Name | None = None
    force: bool = False


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One earlier message."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateBody(Body, frozen=True, kw_only=True):
    """POST /api/model/generate, with the defaults of ForgeLLM 0.4.7."""

    ALIASES: ClassVar[Mapping[str, str]] = {"stream": "streaming", "model_name": "model"}

    prompt: str
    model: Name | None = None
    history: list[Turn] = []
    system_prompt: str | None = None
    max_tokens: Tokens = 100
    temperature: Temperature = 0.7
    top_p: Share = 0.9
    top_k: TopK = 0
    min_p: Share = 0.0
    repetition_penalty: RepetitionPenalty = 1.1
    stop: StopString | StopStrings = ()
    max_kv_size: Tokens | None = None
    seed: Seed | None = None
    is_base_model: bool | None = None
    streaming: bool = False
    timeout_s: TimeoutSeconds | None = None
    queue_timeout_s: TimeoutSeconds | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise EmptyPrompt("`prompt` is empty; give at least one character", field="prompt")

    def to_request(self, model: str, default_system_prompt: str | None) -> Request:
        """The request for `model`. Its id is born here.

        `default_system_prompt` (kept since the load) counts where the body has none and its history opens with none.
        """
        system = self.system_prompt
        if system is None and not any(turn.role == "system" for turn in self.history):
            system = default_system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": turn.role, "content": turn.content} for turn in self.history]
        turns.append({"role": "user", "content": self.prompt})
        return Request(
            request_id=f"gen-{uuid.uuid4().hex}",
            model=model,
            messages=tuple(turns),
            template=None if self.is_base_model is None else not self.is_base_model,
            max_kv_size=self.max_kv_size,
            timeouts=Timeouts(queue_s=self.queue_timeout_s, total_s=self.timeout_s),
            sampling=Sampling(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
                seed=self.seed,
            ),
        )


_B = TypeVar("_B", bound=Body)

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")


def _parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`; msgspec is strict about numbers, nesting and surrogates, and says where it broke."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise InvalidRequest("the body starts with a byte order mark (byte 0); send plain UTF-8")
    try:
        value = msgspec.json.decode(raw.decode("utf-8"))
        json.loads(raw, object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
    except msgspec.DecodeError as error:
        place = "" if "(byte" in str(error) or "`$" in str(error) else f" (byte {len(raw)})"
        raise InvalidRequest(f"the body is not valid JSON: {error}{place}") from error
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"the body has `{twice}` twice", field=twice)
    return values


def _convert(cls: type[_B], values: dict[str, Any]) -> _B:
    try:
        return msgspec.convert(values, cls)
    except msgspec.ValidationError as error:
        match = _WHERE.match(str(error))
        what, path = (match["what"], match["path"] or "") if match else (str(error), "")
        missing = _MISSING.search(what)
        if missing:
            field = f"{path}.{missing['name']}" if path else missing["name"]
            raise InvalidRequest(f"`{field}` is required", field=field) from error
        raise InvalidRequest(f"`{path}`: {what[:1].lower()}{what[1:]}", field=path) from error
