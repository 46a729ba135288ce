"""Turns a Python call that asks a model into a Request, and checks its parameters. Must not send it anywhere."""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import msgspec

from forgellm.errors import InvalidRequest
from forgellm.messages import Request, Sampling, Timeouts, TokenId


def python_request(
    model: str,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    template: bool | None,
    max_kv_size: int | None,
    timeouts: Timeouts | None,
    sampling: Mapping[str, Any],
) -> Request:
    """The request of a call of Supervisor.generate. Its id is born here. Raises InvalidRequest naming the parameter."""
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    return Request(
        request_id=f"gen-{uuid.uuid4().hex}",
        model=model,
        messages=messages,
        template=template,
        max_kv_size=max_kv_size,
        timeouts=timeouts or Timeouts(),
        sampling=checked_sampling(sampling),
    )


def embedding_request(
    model: str, inputs: str | Sequence[str | Sequence[int]], *, truncate: bool, timeouts: Timeouts | None
) -> Request:
    """What Supervisor.embed() asks for; one text stands for a list of one. Raises InvalidRequest."""
    try:
        given = msgspec.convert([inputs] if isinstance(inputs, str) else inputs, tuple[str | tuple[TokenId, ...], ...])
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


def checked_sampling(given: Mapping[str, Any]) -> Sampling:
    """The checked parameters of a Python call: `stop` may be one string, `logit_bias` a mapping, None the default."""
    values = {name: value for name, value in given.items() if value is not None}
    known = [field.name for field in fields(Sampling)]
    for name in values:
        if name not in known:
            raise InvalidRequest(f"there is no parameter {name}; there are {', '.join(known)}", field=name)
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    if isinstance(values.get("logit_bias"), Mapping):
        values["logit_bias"] = tuple(values["logit_bias"].items())
    try:
        return msgspec.convert(values, Sampling)
    except msgspec.ValidationError as error:
        name = str(error).partition("$.")[2].partition("`")[0].partition("[")[0]
        raise InvalidRequest(str(error), field=name or None) from error
