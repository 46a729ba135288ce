"""Embedding models in the catalogue: what makes a folder one, how it pools, and what is refused with which sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

import model_files
from forgellm import Settings
from forgellm.catalog import embedding, entries, resolve
from forgellm.catalog.config_file import read_config
from forgellm.errors import InvalidRequest, ModelError, ModelInvalid, UnsupportedFormat, UntrustedCode

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 30,
}
POOLING = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def modules(*kinds: str) -> list[dict[str, str]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, f"2_{kind}")} for kind in kinds]


def build(folder: Path, files: dict[str, Any] | None = None, **config: Any) -> Path:
    """A sound folder, but for `files` (None: not there) and what `config` overrides."""
    content: dict[str, Any] = {
        "config.json": {**CONFIG, **config},
        "tokenizer.json": {"model": {"type": "WordPiece"}},
        "modules.json": modules("Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": POOLING,
        **(files or {}),
    }
    (folder / "1_Pooling").mkdir(parents=True)
    for name, value in content.items():
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    shapes = {"embeddings.word_embeddings.weight": (20, 8), "encoder.layer.0.output.dense.weight": (60, 8)}
    (folder / "model.safetensors").write_bytes(model_files.tensors(shapes))
    return folder


def recipe(folder: Path) -> embedding.Recipe:
    return embedding.recipe(folder, read_config(folder))


def test_a_bert_folder_resolves_to_an_embedding_model_without_a_kv_cache(tmp_path: Path) -> None:
    source = resolve(str(build(tmp_path / "m")), Settings())
    assert (source.task, source.engine, source.kv_bytes_per_token) == ("embed", "embed", 0)
    assert source.parameters == 20 * 8 + 60 * 8


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {}, embedding.Recipe(True, "mean", True, 30)),
        ({"modules.json": None}, {}, embedding.Recipe(True, "mean", False, 30)),
        ({"modules.json": modules("Transformer", "Pooling")}, {}, embedding.Recipe(True, "mean", False, 30)),
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, {}, embedding.Recipe(True, "cls", True, 30)),
        ({"sentence_bert_config.json": {"max_seq_length": 9}}, {}, embedding.Recipe(True, "mean", True, 9)),
        ({"sentence_bert_config.json": {}}, {"model_type": "roberta"}, embedding.Recipe(True, "mean", True, 28, 2)),
        (
            {"1_Pooling/config.json": {"pooling_mode_lasttoken": True, "include_prompt": True}},
            {"model_type": "qwen3"},
            embedding.Recipe(False, "lasttoken", True, 30),
        ),
    ],
)
def test_the_folder_says_how_to_pool_and_how_much_it_can_read(
    files: dict[str, Any], config: dict[str, Any], expected: embedding.Recipe, tmp_path: Path
) -> None:
    assert recipe(build(tmp_path / "m", files, **config)) == expected


@pytest.mark.parametrize(
    ("files", "config", "error", "words"),
    [
        ({"1_Pooling/config.json": None}, {}, UnsupportedFormat, "not to be guessed"),
        ({"1_Pooling/config.json": {**POOLING, "pooling_mode_cls_token": True}}, {}, UnsupportedFormat, "exactly one"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, {}, UnsupportedFormat, "weightedmean"),
        ({"1_Pooling/config.json": {}}, {}, UnsupportedFormat, "none"),
        ({"modules.json": modules("Transformer", "Pooling", "Dense")}, {}, UnsupportedFormat, "'Dense'"),
        ({"modules.json": modules("Pooling")}, {}, UnsupportedFormat, "Transformer"),
        ({"modules.json": {}}, {}, ModelInvalid, "array"),
        ({"modules.json": [{"type": "a.Pooling", "path": "../../etc"}]}, {}, ModelInvalid, "sub-folder"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, {}, ModelInvalid, "max_seq_length"),
        ({"tokenizer.json": None}, {}, UnsupportedFormat, "tokenizer.json"),
        ({}, {"model_type": "qwen3"}, UnsupportedFormat, "lasttoken"),
        ({}, {"model_type": "llama"}, UnsupportedFormat, "bert, roberta"),
        ({}, {"model_type": "nomic_bert", "auto_map": {"AutoModel": "x.Y"}}, UntrustedCode, "never run"),
        ({}, {"hidden_act": "swish"}, UnsupportedFormat, "hidden_act"),
        ({}, {"position_embedding_type": "relative_key"}, UnsupportedFormat, "absolute"),
        ({}, {"num_attention_heads": 3}, ModelInvalid, "multiple"),
        ({}, {"intermediate_size": None}, ModelInvalid, "intermediate_size"),
        ({}, {"vocab_size": [20]}, ModelInvalid, "vocab_size"),
        ({}, {"num_hidden_layers": 10**9}, ModelInvalid, "num_hidden_layers"),
        ({}, {"type_vocab_size": -1}, ModelInvalid, "type_vocab_size"),
        ({}, {"model_type": "roberta", "pad_token_id": 29}, ModelInvalid, "pad_token_id"),
        ({}, {"num_hidden_layers": 1500}, ModelInvalid, "describes a model of at least"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_file_and_the_key(
    files: dict[str, Any], config: dict[str, Any], error: type[ModelError], words: str, tmp_path: Path
) -> None:
    folder = build(tmp_path / "m", files, **config)
    if config.get("model_type") in {"qwen3", "llama"}:  # what mlx-lm would need as well
        sizes = {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
        (folder / "config.json").write_text(json.dumps({**CONFIG, **sizes, **config}))
    with pytest.raises(error, match=words) as caught:
        resolve(str(folder), Settings())
    assert str(folder) in str(caught.value)


def test_an_embedding_model_takes_no_adapter(tmp_path: Path) -> None:
    adapter = model_files.adapter_folder(tmp_path / "adapter")
    with pytest.raises(InvalidRequest, match="no adapter"):
        resolve(str(build(tmp_path / "m")), Settings(), adapter_path=str(adapter))


def test_the_list_of_models_says_what_each_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    build(tmp_path / "models" / "e")
    model_files.llama_folder(tmp_path / "models" / "chat")
    (tmp_path / "models" / "broken").mkdir()
    (tmp_path / "models" / "broken" / "config.json").write_text("{")
    found = entries(Settings(models_dir=str(tmp_path / "models"), cache_dir=str(tmp_path / "cache")))
    assert {entry.id: entry.task for entry in found} == {
        "e": "embed", "chat": "generate", "broken": "generate", "smollm2": "generate",
    }  # fmt: skip
