"""Builds a tiny random embedding model folder in the layout of sentence-transformers, with a WordPiece tokenizer.

Must not need a network or a real model. Names of tensors are those of transformers, heads of other tasks included.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = (
    *("the", "a", "man", "woman", "girl", "is", "eating", "food", "bread", "playing", "drums", "music"),
    *("river", "mountain", "quick", "brown", "fox"),
)
VOCAB = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
HIDDEN, HEADS, INNER, LAYERS, POSITIONS = 32, 4, 64, 2, 48


def build(
    folder: Path,
    *,
    kind: str = "bert",
    pooling: str = "mean",
    normalize: bool = True,
    prefix: str = "",
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> Path:
    """Write a model into `folder` (made if missing) and return it. `prefix` is put before the names of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", {**a_config(kind), **(config or {})})
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    named = [{"type": f"sentence_transformers.models.{m}", "path": p} for m, p in zip(modules, paths, strict=False)]
    _write(folder / "modules.json", named)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    keys = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "lasttoken": "lasttoken"}
    content = {f"pooling_mode_{key}": mode == pooling for mode, key in keys.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **content})
    tokenizer = Tokenizer(models.WordPiece(VOCAB, unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(8)  # as published ones have it; the engine has its own
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    save(folder / "model.safetensors", {prefix + name: value for name, value in tensors(seed).items()})
    return folder


def a_config(kind: str = "bert") -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": len(VOCAB),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * (1.0 if len(shape) == 1 else 2.0 * shape[-1] ** -0.5)).astype(np.float32)

    shapes = {
        "embeddings.word_embeddings.weight": (len(VOCAB), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "pooler.dense.weight": (HIDDEN, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        linear = {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (INNER, HIDDEN)}
        linear |= {"output.dense": (HIDDEN, INNER)}
        for part, shape in linear.items():
            shapes[f"{layer}.{part}.weight"] = shape
            shapes[f"{layer}.{part}.bias"] = shape[:1]
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    found = {name: normal(*shape) for name, shape in shapes.items()}
    for name in norms:
        found |= {f"{name}.weight": 1 + 0.1 * normal(HIDDEN), f"{name}.bias": 0.1 * normal(HIDDEN)}
    return found


def save(path: Path, values: dict[str, np.ndarray]) -> None:
    import mlx.core as mx

    mx.save_safetensors(str(path), {name: mx.array(value) for name, value in values.items()})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), "utf-8")
