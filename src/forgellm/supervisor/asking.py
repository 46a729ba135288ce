"""Turns a Python call that asks a model into a Request, and checks its parameters. Must not send it anywhere."""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict

import msgspec

from forgellm import typed
from forgellm.errors import InvalidRequest
from forgellm.messages import (
    Constraint,
    KeepAliveSeconds,
    Request,
    Sampling,
    ThinkingBudget,
    Timeouts,
    TokenId,
    Tokens,
    Tools,
)


class GenerateOptions(TypedDict, total=False):
    """What a call of generate() may say besides what is asked of whom. None is the same as not said.

    `template` False gives a text to the model as it is, without its chat template. `timeouts` override those of the
    model and the settings. `constraint` and `tools`: what the answer must look like, and what it may call. For these,
    `thinking_budget`, `continue_final`, `max_kv_size` (tokens) and `keep_alive_s` see messages.Request; for all
    others, messages.Sampling. `stop` may be one text.
    """

    template: bool | None
    max_kv_size: int | None
    timeouts: Timeouts | None
    constraint: Constraint | None
    tools: Tools | None
    thinking_budget: int | None
    continue_final: bool | None
    keep_alive_s: float | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None
    stop: str | Sequence[str] | None
    seed: int | None
    logprobs: int | None


_OF_REQUEST: Mapping[str, Any] = {
    "template": bool,
    "max_kv_size": Tokens,
    "timeouts": Timeouts,
    "constraint": Constraint,
    "tools": Tools,
    "thinking_budget": ThinkingBudget,
    "continue_final": bool,
    "keep_alive_s": KeepAliveSeconds,
}
"""The options that are fields of Request, and what each may be; all others are Sampling's."""


def python_request(model: str, prompt: str | Sequence[Mapping[str, Any]], options: GenerateOptions) -> Request:
    """The request of a call of Supervisor.generate. Its id is born here. Raises InvalidRequest naming the parameter."""
    given = {name: value for name, value in options.items() if value is not None}
    own = {name: _checked(name, given.pop(name), kind) for name, kind in _OF_REQUEST.items() if name in given}
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    return Request(
        request_id=f"gen-{uuid.uuid4().hex}",
        model=model,
        messages=messages,
        sampling=_sampling(given),
        **own,
    )


def _checked(name: str, value: object, kind: Any) -> Any:
    try:
        return typed.convert(msgspec.to_builtins(value), kind)
    except (msgspec.ValidationError, TypeError) as error:  # TypeError: what no JSON could hold
        raise InvalidRequest(f"{name}: {error}", field=name) from error


def embedding_request(
    model: str, inputs: str | Sequence[str | Sequence[int]], *, truncate: bool, timeouts: Timeouts | None
) -> Request:
    """What Supervisor.embed() asks for; one text stands for a list of one. Raises InvalidRequest."""
    try:
        given = typed.convert([inputs] if isinstance(inputs, str) else inputs, tuple[str | tuple[TokenId, ...], ...])
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"inputs must be texts, or lists of token ids: {error}", field="inputs") from error
    return Request(
        request_id=f"emb-{uuid.uuid4().hex}",
        model=model,
        inputs=given,
        truncate=truncate,
        timeouts=timeouts or Timeouts(),
    )


def seeded(request: Request) -> Request:
    """The request with a seed. Chosen once, so that it says the same again wherever it is run again."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))


def _sampling(values: dict[str, Any]) -> Sampling:
    """The checked parameters of a Python call: `stop` may be one string, `logit_bias` a mapping."""
    known = [field.name for field in fields(Sampling)]
    for name in values:
        if name not in known:
            names = ", ".join([*_OF_REQUEST, *known])
            raise InvalidRequest(f"there is no parameter {name}; there are {names}", field=name)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    if isinstance(values.get("logit_bias"), Mapping):
        values["logit_bias"] = tuple(values["logit_bias"].items())
    try:
        return typed.convert(values, Sampling)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].partition("`")[0].partition("[")[0]
        raise InvalidRequest(str(error), field=name or None) from error
