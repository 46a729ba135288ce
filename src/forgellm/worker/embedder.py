"""From a model folder to an embedder in memory: token ids in, one vector for each text out.

Must not know requests or texts. Runs no code of the folder, and lets only errors of errors.py out.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
from mlx import nn

from forgellm.catalog.config_file import read_config
from forgellm.catalog.embedding import Pooling, Recipe, recipe
from forgellm.errors import ModelInvalid
from forgellm.messages import EngineOptions, ModelSource
from forgellm.worker import bert, layout
from forgellm.worker.engine import Progress
from forgellm.worker.load_error import load_edge

CHUNK_TOKENS = 512
"""Of each text that a decoder reads at once: long ones are read in several chunks, with a pause after each."""

Pass = Generator[None, None, mx.array]
"""A batch on its way through the model: pauses often, so that its engine can listen, and returns the result."""


class States(Protocol):
    """The model itself. `tokens` (batch, tokens) are padded on the right to the longest of `lengths` (batch)."""

    def __call__(self, tokens: mx.array, lengths: mx.array) -> Pass: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A model in memory, and how to use it. `vocab_size`: token ids are below it."""

    states: States
    recipe: Recipe
    vocab_size: int
    parameters: int
    quantization: str
    layout: str
    weights_bytes: int

    def vectors(self, texts: list[tuple[int, ...]]) -> Pass:
        """The vectors (text, dimension) of texts given as token ids, float32, evaluated."""
        longest = max(map(len, texts))
        tokens = mx.array([[*text, *[0] * (longest - len(text))] for text in texts])
        lengths = mx.array([len(text) for text in texts])
        states = yield from self.states(tokens, lengths)
        found = _pooled(states.astype(mx.float32), lengths, self.recipe.pooling) if states.ndim == 3 else states
        if self.recipe.is_normalised:
            found = found / mx.maximum(mx.linalg.norm(found, axis=-1, keepdims=True), 1e-12)
        found = mx.contiguous(found)
        mx.eval(found)
        return found


def load(source: ModelSource, options: EngineOptions, *, is_blas_fast: bool, progress: Progress) -> Embedder:
    """Load `source`; `progress` rises from 0 to 1. Raises ModelError, or another ForgeLLMError, and nothing else."""
    with load_edge(source):
        return _load(source, options, is_blas_fast, progress)


def _load(source: ModelSource, options: EngineOptions, is_blas_fast: bool, progress: Progress) -> Embedder:
    if source.path is None:
        raise ModelInvalid(f"{source.name} has no path to load from")
    folder = Path(source.path)
    config = read_config(folder)
    how = recipe(folder, config)
    progress(0.0, "reading weights")
    weights: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        weights |= mx.load(str(file))  # type: ignore[arg-type]  # of safetensors: tensors by name, read when used
    model: nn.Module
    if how.is_encoder:
        model, weights = bert.Bert(config, how.first_position), bert.renamed(weights)
        states = model.states
    else:
        model, weights = _decoder(config), {name.removeprefix("model."): v for name, v in weights.items()}
        weights = {name: value for name, value in weights.items() if not name.startswith("lm_head.")}
        states = LastStates(model)
    packed = config.get("quantization")
    if isinstance(packed, dict):
        size, bits = packed["group_size"], packed["bits"]
        nn.quantize(model, size, bits, class_predicate=lambda path, _: f"{path}.scales" in weights)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    layout.settle(model, options, is_blas_fast=is_blas_fast, progress=lambda done: progress(done, "reading weights"))
    bits = packed["bits"] if isinstance(packed, dict) else None
    return Embedder(
        states=states,
        recipe=how,
        vocab_size=config["vocab_size"],
        parameters=source.parameters,
        quantization=f"{bits}-bit" if bits else "none",
        layout=layout.describe(model, bits),
        weights_bytes=layout.held_bytes(model),
    )


def _decoder(config: dict[str, Any]) -> nn.Module:
    from mlx_lm.models import qwen3  # noqa: PLC0415 - 1.2 s and 50 MB, which the encoders do without

    model: nn.Module = qwen3.Qwen3Model(qwen3.ModelArgs.from_dict(config))
    return model


class LastStates:
    """A decoder's state of the last token of each text. Attention looks back only, so padding changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, lengths: mx.array) -> Pass:
        """The states (batch, hidden), float32."""
        from mlx_lm.models.cache import make_prompt_cache  # noqa: PLC0415 - see _decoder

        cache = make_prompt_cache(self._model)
        rows = mx.arange(tokens.shape[0])
        found: mx.array | None = None
        for start in range(0, tokens.shape[1], CHUNK_TOKENS):
            states = self._model(tokens[:, start : start + CHUNK_TOKENS], cache=cache)
            at = lengths - 1 - start
            ends_here = ((at >= 0) & (at < CHUNK_TOKENS))[:, None]
            last = states[rows, mx.clip(at, 0, states.shape[1] - 1)].astype(mx.float32)
            found = last if found is None else mx.where(ends_here, last, found)
            mx.eval(found, [part.state for part in cache])
            yield
        if found is None:
            raise ValueError("there are no tokens to read")
        return found


def _pooled(states: mx.array, lengths: mx.array, pooling: Pooling) -> mx.array:
    """One vector for each text, of its own tokens' states (text, token, dimension)."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        return states[mx.arange(states.shape[0]), lengths - 1]
    is_token = (mx.arange(states.shape[1]) < lengths[:, None])[:, :, None]
    if pooling == "max":
        return mx.where(is_token, states, -mx.inf).max(axis=1)
    return mx.where(is_token, states, 0.0).sum(axis=1) / lengths[:, None]
