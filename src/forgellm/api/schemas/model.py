"""Bodies of the `/api/model/*` routes: what each may hold. Calls nothing."""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from forgellm.api.schemas.body import Body, Name, honoured, only, refused
from forgellm.errors import EmptyPrompt, InvalidRequest
from forgellm.messages import (
    KeepAliveSeconds,
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

    model_name: Annotated[Name | None, honoured("which model; required, unless `adapter_path` says it")] = None
    adapter_path: Annotated[
        Annotated[str, Meta(min_length=1, max_length=4096)] | None,
        honoured("a LoRA adapter; alone, it finds its base model"),
    ] = None
    wait: Annotated[bool, honoured("answer when it is ready")] = False
    system_prompt: Annotated[str | None, honoured("kept as the default for this model's generate calls")] = None
    ttl_s: Annotated[Seconds | None, honoured("unload after so many idle seconds")] = None
    pin: Annotated[bool | None, honoured("never unload it for being idle, nor for another")] = None
    replicas: Annotated[Annotated[int, Meta(ge=1, le=64)] | None, honoured("workers that serve it")] = None
    max_kv_size: Annotated[Tokens | None, honoured("cap of each request's KV cache, in tokens")] = None
    context_length: Annotated[Tokens | None, honoured("longest prompt and answer, in tokens")] = None
    draft_model: Annotated[Any, refused("requests share one batch, so there is no speculative decoding")] = None

    def __post_init__(self) -> None:
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


class PlanBody(LoadBody, frozen=True, kw_only=True):
    """POST /api/model/plan."""

    wait: Annotated[bool, only(False, "a plan loads nothing there is to wait for")] = False


class UnloadBody(Body, frozen=True, kw_only=True):
    """POST /api/model/unload; the body may be missing."""

    ALIASES: ClassVar[Mapping[str, str]] = {"model": "model_name"}

    model_name: Annotated[Name | None, honoured("which model; the current one without")] = None
    force: Annotated[bool, honoured("abort what runs instead of letting it finish")] = False


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One earlier message."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateBody(Body, frozen=True, kw_only=True):
    """POST /api/model/generate, with the defaults of ForgeLLM 0.4.7."""

    ALIASES: ClassVar[Mapping[str, str]] = {"stream": "streaming", "model_name": "model"}

    prompt: Annotated[str, honoured("what is answered")]
    model: Annotated[Name | None, honoured("which model answers; the current one without")] = None
    history: Annotated[tuple[Turn, ...], honoured("earlier turns")] = ()
    system_prompt: Annotated[str | None, honoured("the system message; that of the load without")] = None
    max_tokens: Annotated[Tokens, honoured("longest answer")] = 100
    temperature: Annotated[Temperature, honoured("0 is greedy")] = 0.7
    top_p: Annotated[Share, honoured("the likeliest tokens that together have this probability; 1 is off")] = 0.9
    top_k: Annotated[TopK, honoured("the so many likeliest tokens; 0 is off")] = 0
    min_p: Annotated[Share, honoured("tokens at least so likely as this share of the likeliest one; 0 is off")] = 0.0
    repetition_penalty: Annotated[RepetitionPenalty, honoured("divides the logit of tokens that came; 1 is off")] = 1.1
    stop: Annotated[StopString | StopStrings, honoured("the text ends before it; it may span tokens")] = ()
    max_kv_size: Annotated[Tokens | None, honoured("cap of this request's KV cache, in tokens")] = None
    seed: Annotated[Seed | None, honoured("the same seed gives the same text, alone or in a batch")] = None
    is_base_model: Annotated[
        bool | None, honoured("true: the prompt is continued as it is, without a chat template")
    ] = None
    streaming: Annotated[bool, honoured("the answer as lines of JSON")] = False
    timeout_s: Annotated[TimeoutSeconds | None, honoured("longest it may take in all, the queue included")] = None
    queue_timeout_s: Annotated[TimeoutSeconds | None, honoured("longest wait for a place")] = None
    first_token_timeout_s: Annotated[TimeoutSeconds | None, honoured("longest wait for the first token")] = None
    token_timeout_s: Annotated[TimeoutSeconds | None, honoured("longest wait for each further token")] = None
    keep_alive_s: Annotated[
        KeepAliveSeconds | None,
        honoured(
            "so many idle seconds the model stays loaded, from now on; 0: until it is done; negative: until somebody "
            "unloads it"
        ),
    ] = None

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
            keep_alive_s=self.keep_alive_s,
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
