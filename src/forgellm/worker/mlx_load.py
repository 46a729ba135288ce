"""From a model source to a model in memory with its tokenizer: the one edge at which foreign files are met.

Runs no code of a model folder, downloads nothing but the demo model, and lets only errors of errors.py out.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_lm.utils import get_total_parameters, load_adapters, load_model, load_tokenizer

from forgellm.catalog import demo
from forgellm.errors import ModelInvalid
from forgellm.messages import EngineOptions, ModelSource
from forgellm.worker import gguf, layout
from forgellm.worker.engine import Progress
from forgellm.worker.load_error import load_edge

NO_CONTEXT_LIMIT = 1 << 30
"""For models that state none (state-space models have none)."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model in memory. `context_length` in tokens, prompt and answer together."""

    model: Any
    tokenizer: Any
    context_length: int
    parameters: int
    quantization: str
    layout: str


def load(source: ModelSource, options: EngineOptions, *, is_blas_fast: bool, progress: Progress) -> Loaded:
    """Load `source`; `progress` rises from 0 to 1. Raises ModelError, or another ForgeLLMError, and nothing else."""
    with load_edge(source):
        return _load(source, options, is_blas_fast, _Rising(progress))


class _Rising:
    """Progress that never falls, whatever the parts report. `part` maps a part's 0..1 to its share of the whole."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._best = 0.0

    def part(self, start: float, end: float) -> Progress:
        def report(done: float, stage: str) -> None:
            self._best = max(self._best, start + (end - start) * min(max(done, 0.0), 1.0))
            self._progress(self._best, stage)

        return report


def _load(source: ModelSource, options: EngineOptions, is_blas_fast: bool, rising: _Rising) -> Loaded:
    folder = _folder(source, Path(options.cache_dir), rising)
    read = rising.part(0.0 if source.kind == "folder" else 0.5, 1.0)
    read(0.0, "reading weights")
    model, config = load_model(folder, lazy=True, strict=True, trust_remote_code=False)
    with ThreadPoolExecutor(1, "tokenizer") as beside:  # half a second of Python, while mlx computes without the GIL
        plain = {"trust_remote_code": False}
        tokenizer = beside.submit(load_tokenizer, folder, plain, eos_token_ids=config.get("eos_token_id"))
        parameters = get_total_parameters(model)
        if source.adapter_path is not None:
            model = _with_adapter(model, Path(source.adapter_path))
        layout.settle(model, options, is_blas_fast=is_blas_fast, progress=lambda done: read(done, "reading weights"))
    bits = _bits(config)
    return Loaded(
        model=model,
        tokenizer=tokenizer.result(),
        context_length=_context_length(config, tokenizer.result()),
        parameters=parameters,
        quantization=f"{bits}-bit" if bits else "none",
        layout=layout.describe(model, bits),
    )


def _folder(source: ModelSource, cache_dir: Path, rising: _Rising) -> Path:
    """The folder with config.json and safetensors; fetched and converted first where the source is neither."""
    path = Path(source.path) if source.path is not None else None
    if source.kind == "demo" and path is None:
        path = demo.fetch(cache_dir, rising.part(0.0, 0.3))
    if path is None:
        raise ModelInvalid(f"{source.name} has no path to load from")
    if source.kind == "folder":
        return path
    return gguf.converted(path, cache_dir, rising.part(0.3, 0.5))


def _with_adapter(model: Any, folder: Path) -> Any:
    """`model` with the LoRA adapter of a folder that catalog.adapters has prepared. Raises ModelInvalid."""
    try:
        model = load_adapters(model, str(folder))
        model.eval()
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise ModelInvalid(
            f"the adapter {folder} does not fit this model, or is not mlx-lm's format: {error}"
        ) from error
    return model


def _bits(config: dict[str, Any]) -> int | None:
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    return int(bits) if bits else None


def _context_length(config: dict[str, Any], tokenizer: Any) -> int:
    """What the config states (of the text model, where there are several), else the tokenizer, else no limit."""
    for part in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(value := part.get(key), int) and value > 0:
                return value
    stated = getattr(tokenizer, "model_max_length", None)
    return stated if isinstance(stated, int) and 0 < stated < NO_CONTEXT_LIMIT else NO_CONTEXT_LIMIT
