"""Loading a model folder: progress, adapters, and every broken folder as a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from forgellm.catalog.adapters import prepare
from forgellm.errors import ForgeLLMError, ModelInvalid, UnsupportedFormat, UntrustedCode
from forgellm.messages import EngineOptions, ModelInfo, ModelSource, Request, Sampling
from forgellm.worker.mlx_engine import MLXEngine

pytestmark = pytest.mark.model


def load(folder: Path, **source: Any) -> ModelInfo:
    engine = MLXEngine()
    try:
        return engine.load(
            ModelSource(name="tiny", kind="folder", path=str(folder), **source), EngineOptions(), lambda _p, _s: None
        )
    finally:
        engine.close()


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    path = str(folder / "model.safetensors")
    weights = dict(mx.load(path))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})


def answer(engine: MLXEngine) -> list[int]:
    engine.add(Request(request_id="r", model="tiny", prompt=(9, 8, 7), sampling=Sampling(max_tokens=12)))
    tokens: list[int] = []
    while engine.has_work():
        tokens += [token for chunk in engine.step()[0] for token in chunk[2]]
    return tokens


def test_a_load_says_what_it_found(tiny_folder: Path, tiny_base_folder: Path) -> None:
    info = load(tiny_folder)
    assert (info.context_length, info.vocab_size, info.has_chat_template) == (512, 384, True)
    assert (info.quantization, info.layout, info.blas, info.device) == ("none", "f32", "stock", "cpu")
    assert info.parameters == sum(v.size for v in mx.load(str(tiny_folder / "model.safetensors")).values())
    assert not load(tiny_base_folder).has_chat_template


def test_progress_rises_through_its_stages(tiny_folder: Path) -> None:
    seen: list[tuple[float, str]] = []
    engine = MLXEngine()
    source = ModelSource(name="tiny", kind="folder", path=str(tiny_folder))
    engine.load(source, EngineOptions(), lambda done, stage: seen.append((done, stage)))
    engine.close()
    done = [value for value, _ in seen]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, 1.0)
    assert list(dict.fromkeys(stage for _, stage in seen)) == ["reading weights", "warming up"]


def test_a_quantised_model_is_held_as_asked(copy: Path) -> None:
    from mlx import nn
    from mlx_lm.utils import load_model, save_model

    model, _ = load_model(copy)
    nn.quantize(model, group_size=32, bits=4)
    (copy / "model.safetensors").unlink()
    save_model(copy, model)
    change_config(copy, quantization={"group_size": 32, "bits": 4})
    results = {}
    for layout in ("f32", "native"):
        engine = MLXEngine()
        source = ModelSource(name="tiny", kind="folder", path=str(copy))
        info = engine.load(source, EngineOptions(layout=layout), lambda _p, _s: None)  # type: ignore[arg-type]
        results[info.layout] = answer(engine)
        assert info.quantization == "4-bit"
        engine.close()
    assert set(results) == {"f32", "native 4-bit"}
    assert results["f32"] == results["native 4-bit"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda f: (f / "config.json").unlink(), ModelInvalid, "config.json"),
        (lambda f: (f / "config.json").write_text("{"), ModelInvalid, "broken"),
        (lambda f: (f / "config.json").write_text("[]"), ModelInvalid, "broken"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), ModelInvalid, "broken"),
        (lambda f: (f / "model.safetensors").unlink(), ModelInvalid, "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), ModelInvalid, "broken"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), ModelInvalid, "broken"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ModelInvalid, "broken"),
        (lambda f: change_config(f, hidden_size=128), ModelInvalid, "broken"),
        (lambda f: change_config(f, num_hidden_layers=3), ModelInvalid, "broken"),
        (lambda f: change_config(f, num_attention_heads="four"), ModelInvalid, "broken"),
        (lambda f: change_config(f, model_type="nobody_knows"), UnsupportedFormat, "nobody_knows"),
        (lambda f: change_config(f, model_file="evil.py"), UntrustedCode, "own code"),
        (lambda f: change_weights(f, lambda w: w.pop("model.norm.weight")), ModelInvalid, "model.norm.weight"),
        (
            lambda f: change_weights(f, lambda w: w.update({"model.norm.weight": w["model.norm.weight"] * mx.nan})),
            ModelInvalid,
            "NaN",
        ),
    ],
)  # fmt: skip
def test_a_broken_folder_is_refused_with_a_sentence(
    copy: Path, change: Callable[[Path], Any], error: type[ForgeLLMError], says: str
) -> None:
    change(copy)
    with pytest.raises(error, match=says) as caught:
        load(copy)
    assert type(caught.value) is error
    assert caught.value.message.startswith("tiny ")


def test_a_cut_weights_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(ModelInvalid):
        load(copy)


def test_chaos_051_no_code_of_a_model_folder_runs(copy: Path) -> None:
    """auto_map and model_file name Python files beside the weights."""
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    auto = {"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", "evil.T"], "AutoModelForCausalLM": "evil.M"}
    change_config(copy, auto_map=auto)
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"auto_map": auto, "tokenizer_class": "T"}))
    with pytest.raises(UntrustedCode):
        load(copy)
    assert not (copy / "ran").exists()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter for the tiny model's last layer, as mlx_lm.lora writes it, with weights that change answers."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for i, (name, rows, columns) in enumerate((("self_attn.q_proj", 64, 64), ("mlp.down_proj", 128, 64))):
        weights[f"model.layers.1.{name}.lora_a"] = mx.random.normal((rows, 4), key=mx.random.key(i))
        weights[f"model.layers.1.{name}.lora_b"] = mx.random.normal((4, columns), key=mx.random.key(i + 9))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def test_an_adapter_changes_the_answers(
    tiny_folder: Path, adapter: Path, load_engine: Callable[..., MLXEngine], tmp_path: Path
) -> None:
    plain = answer(load_engine(tiny_folder))
    adapted = answer(load_engine(tiny_folder, adapter_path=str(adapter)))
    assert adapted != plain
    shutil.copy(adapter / "adapters.safetensors", adapter / "0000100_adapters.safetensors")
    (adapter / "adapters.safetensors").unlink()
    checkpoint = prepare(adapter / "0000100_adapters.safetensors", tmp_path)
    assert answer(load_engine(tiny_folder, adapter_path=str(checkpoint))) == adapted


def test_an_adapter_folder_without_its_config_is_never_the_base_model(tiny_folder: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelInvalid, match=r"adapter_config\.json"):
        load(tiny_folder, adapter_path=str(adapter))


@pytest.mark.parametrize("config", ["{", '{"peft_type": "LORA", "r": 8}', '{"num_layers": 1, "lora_parameters": {}}'])
def test_an_adapter_of_another_format_is_refused(tiny_folder: Path, adapter: Path, config: str) -> None:
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(ModelInvalid, match="adapter"):
        load(tiny_folder, adapter_path=str(adapter))


def test_an_adapter_for_another_model_is_refused(tiny_folder: Path, adapter: Path) -> None:
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {"model.layers.9.mlp.lora_a": mx.zeros((2, 2))})
    with pytest.raises(ModelInvalid, match="incompatible"):
        load(tiny_folder, adapter_path=str(adapter))


def test_a_gguf_and_the_demo_model_are_fetched_and_converted_first(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stages come before the weights', and progress still only rises."""
    from forgellm.catalog import demo
    from forgellm.worker import gguf

    def fetch(cache_dir: Path, progress: Callable[[float, str], None]) -> Path:
        progress(1.0, "fetching")
        return cache_dir / "demo.gguf"

    def converted(path: Path, cache_dir: Path, progress: Callable[[float, str], None]) -> Path:
        assert (path.name, cache_dir) == ("demo.gguf", tmp_path)
        progress(0.5, "converting")
        return tiny_folder

    monkeypatch.setattr(demo, "fetch", fetch)
    monkeypatch.setattr(gguf, "converted", converted)
    seen: list[tuple[float, str]] = []
    engine = MLXEngine()
    engine.load(
        ModelSource(name="demo", kind="demo"), EngineOptions(cache_dir=str(tmp_path)), lambda p, s: seen.append((p, s))
    )
    engine.close()
    assert [value for value, _ in seen] == sorted(value for value, _ in seen)
    assert list(dict.fromkeys(s for _, s in seen)) == ["fetching", "converting", "reading weights", "warming up"]
