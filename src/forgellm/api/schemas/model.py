"""Bodies of the `/api/model/*` routes: what each may hold. Calls nothing."""

import uuid
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas.body import Body, Name
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

Seconds = Annotated[float, Meta(ge=0, le=1e9)]


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
    history: tuple[Turn, ...] = ()
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
    first_token_timeout_s: TimeoutSeconds | None = None
    token_timeout_s: TimeoutSeconds | None = None

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
            timeouts=Timeouts(
                queue_s=self.queue_timeout_s,
                first_token_s=self.first_token_timeout_s,
                token_s=self.token_timeout_s,
                total_s=self.timeout_s,
            ),
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
