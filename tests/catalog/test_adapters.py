"""Adapters: whole or refused, checkpoints by name, and the base model that they were trained on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import model_files
from forgellm.catalog import adapter_base, resolve
from forgellm.config import ModelConfig, Settings
from forgellm.errors import ForgeLLMError, InvalidRequest, ModelInvalid, UnsupportedFormat


@pytest.fixture
def adapter(root: Path) -> Path:
    model_files.llama_folder(root / "base")
    return model_files.adapter_folder(root / "cpt" / "mine")


@pytest.mark.parametrize("name", ["cpt/mine", "cpt/mine/adapters.safetensors"])
def test_an_adapter_is_its_folder(name: str, settings: Settings, adapter: Path) -> None:
    assert resolve("base", settings, adapter_path=name).adapter_path == str(adapter)
    assert resolve("base", settings, adapter_path=str(adapter)).adapter_path == str(adapter)


def test_a_checkpoint_is_the_one_that_gets_loaded(settings: Settings, adapter: Path) -> None:
    """mlx_lm loads adapters.safetensors whatever one names, so the checkpoint gets a folder where it has that name."""
    (adapter / "0000100_adapters.safetensors").write_bytes(model_files.tensors({"lora_b": (3, 3)}))
    prepared = resolve("base", settings, adapter_path="cpt/mine/0000100_adapters.safetensors").adapter_path
    assert prepared is not None
    folder = Path(prepared)
    assert (folder / "adapters.safetensors").read_bytes() == (adapter / "0000100_adapters.safetensors").read_bytes()
    assert (folder / "adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapters.safetensors"]


def test_a_checkpoint_folder_is_made_once_and_mended_if_it_is_not_whole(settings: Settings, adapter: Path) -> None:
    name = str(adapter / "0000100_adapters.safetensors")
    first = resolve("base", settings, adapter_path=name).adapter_path
    assert first is not None
    before = (Path(first) / "adapters.safetensors").lstat().st_ino
    assert resolve("base", settings, adapter_path=name).adapter_path == first
    assert (Path(first) / "adapters.safetensors").lstat().st_ino == before
    (Path(first) / "adapters.safetensors").unlink()
    resolve("base", settings, adapter_path=name)
    assert (Path(first) / "adapters.safetensors").is_file()


def test_an_adapter_of_the_call_wins_over_that_of_the_config(settings: Settings, adapter: Path, root: Path) -> None:
    other = model_files.adapter_folder(root / "other")
    ours = Settings(
        models_dir=settings.models_dir,
        cache_dir=settings.cache_dir,
        models={"mine": ModelConfig(source="base", adapter="cpt/mine")},
    )
    assert resolve("mine", ours).adapter_path == str(adapter)
    assert resolve("mine", ours, adapter_path="other").adapter_path == str(other)


def config(**values: Any) -> dict[str, Any]:
    return {"adapter_config.json": json.dumps({"num_layers": 2, "lora_parameters": {"rank": 8}, **values})}


BAD: dict[str, tuple[dict[str, Any], type[ForgeLLMError], str]] = {
    "no config": ({"adapter_config.json": None}, ModelInvalid, "adapter_config.json"),
    "config not JSON": ({"adapter_config.json": "{"}, ModelInvalid, "adapter_config.json"),
    "no weights": ({"adapters.safetensors": None}, ModelInvalid, "0000100_adapters.safetensors"),
    "empty weights": ({"adapters.safetensors": ""}, ModelInvalid, "adapters.safetensors"),
    "a PEFT adapter": (config(peft_type="LORA"), UnsupportedFormat, "PEFT"),
    "unknown kind": (config(fine_tune_type="prefix"), UnsupportedFormat, "prefix"),
    "layers a word": (config(num_layers="all"), ModelInvalid, "num_layers"),
    "no rank": (config(lora_parameters={}), ModelInvalid, "rank"),
    "rank 2^60": (config(lora_parameters={"rank": 1 << 60}), ModelInvalid, "rank"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_adapter_that_is_not_whole_never_loads_the_base_model_in_silence(
    case: str, settings: Settings, adapter: Path
) -> None:
    """Defect 11 of 0.4.7: a folder without adapter_config.json loaded the base model and said nothing."""
    files, error, names = BAD[case]
    for name, content in files.items():
        if content is None:
            (adapter / name).unlink()
        else:
            (adapter / name).write_text(content)
    with pytest.raises(ForgeLLMError) as caught:
        resolve("base", settings, adapter_path="cpt/mine")
    assert type(caught.value) is error
    assert names in caught.value.message


@pytest.mark.parametrize("name", ["cpt/none", "/nowhere/at/all", "../mine", "cpt/mine/adapter_config.json"])
def test_an_adapter_that_is_not_there_names_the_field(name: str, settings: Settings, adapter: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve("base", settings, adapter_path=name)
    assert caught.value.field == "adapter_path"


def test_echo_has_nothing_to_adapt(settings: Settings, adapter: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve("echo", settings, adapter_path="cpt/mine")
    assert caught.value.field == "adapter_path"


def test_the_base_model_is_the_one_in_the_adapter_config(settings: Settings, adapter: Path) -> None:
    assert adapter_base("cpt/mine", settings) == "org/base"
    assert adapter_base("cpt/mine/0000100_adapters.safetensors", settings) == "org/base"


def test_the_base_model_is_else_the_one_in_the_newest_training_log(settings: Settings, adapter: Path) -> None:
    model_files.adapter_folder(adapter, model=None)
    for number, name in enumerate(["org/old", "org/new"]):
        log = adapter / f"CPT_{name[4:]}.json"
        log.write_text(json.dumps({"config": {"model_name": name}, "metrics": []}))
        os.utime(log, (number, number))
    assert adapter_base("cpt/mine", settings) == "org/new"


def test_an_adapter_without_a_base_model_asks_for_one(settings: Settings, adapter: Path) -> None:
    model_files.adapter_folder(adapter, model=None)
    with pytest.raises(InvalidRequest, match="model_name") as caught:
        adapter_base("cpt/mine", settings)
    assert caught.value.field == "model_name"
