"""Our decode step beside mlx-lm's own, on a tiny random model: whatever joins and leaves the batch, the same tokens."""

import importlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.utils import load

from forgellm.worker import steps

pytestmark = pytest.mark.model


def likeliest_but_one(_: mx.array, logits: mx.array) -> mx.array:
    """A processor: no sequence gets the token that it would have got."""
    return mx.where(logits == logits.max(axis=-1, keepdims=True), -mx.inf, logits)


def second(logits: mx.array) -> mx.array:
    """A sampler of one request's own."""
    return mx.argsort(-logits, axis=-1)[:, 1]


def answers(model: Any) -> tuple[dict[int, list[int]], set[str], set[bool]]:
    """({uid: tokens}, the batches' classes, whether responses had logprobs) of requests that come one after the other,
    with or without a processor, with the shared sampler or one of their own."""
    generator = BatchGenerator(model, stop_tokens=[[2]], prefill_step_size=8)
    kinds: list[dict[str, Any]] = [
        {},
        {"logits_processors": [[likeliest_but_one]]},
        {"samplers": [second]},
        {"samplers": [second], "logits_processors": [[likeliest_but_one]]},
    ]
    found: dict[int, list[int]] = defaultdict(list)
    has_logprobs = set()
    for turn in range(60):
        if turn < 24 and turn % 2 == 0:
            prompt = [3 + (turn * place) % 300 for place in range(1, 5 + turn)]
            generator.insert([prompt], max_tokens=[3 + turn % 9], **kinds[turn // 2 % len(kinds)])
        for response in generator.next()[1]:
            found[response.uid].append(response.token)
            has_logprobs.add(response.logprobs is not None)
    batches = {type(generator._generation_batch).__name__}
    generator.close()
    return dict(found), batches, has_logprobs


def test_every_request_gets_the_tokens_that_mlx_lms_own_step_gives(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(str(tiny_folder))[0]
    monkeypatch.setattr(importlib.import_module("mlx_lm.generate"), "GenerationBatch", steps.GenerationBatch)
    expected, stock, has_logprobs = answers(model)
    assert (len(expected), stock, has_logprobs) == (12, {"GenerationBatch"}, {True})
    steps.install()
    assert answers(model) == (expected, {"Steps"}, {False})
