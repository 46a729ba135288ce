"""What the listing routes and `forgellm models` show: everything that resolve would find, by the name to load it by."""

from pathlib import Path

import model_files
from forgellm.catalog import CatalogEntry, entries, resolve
from forgellm.config import ModelConfig, Settings


def test_everything_is_listed_once_by_name_with_its_kind_and_size(settings: Settings, root: Path) -> None:
    base = model_files.llama_folder(root / "org" / "base")
    trained = model_files.adapter_folder(root / "cpt" / "mine")
    tuned = model_files.adapter_folder(root / "ift" / "tuned")
    (root / "m.gguf").write_bytes(b"GGUF")
    (root / "notes").mkdir()
    ours = Settings(
        models_dir=settings.models_dir, cache_dir=settings.cache_dir, models={"alias": ModelConfig(source="echo")}
    )
    found = {entry.id: entry for entry in entries(ours)}
    assert {entry.id: (entry.name, entry.kind, entry.source) for entry in found.values()} == {
        "alias": ("alias", "base", "config"),
        "cpt/mine": ("mine", "cpt", "models_dir"),
        "ift/tuned": ("tuned", "ift", "models_dir"),
        "m.gguf": ("m.gguf", "base", "models_dir"),
        "org/base": ("org/base", "base", "models_dir"),
        "smollm2": ("smollm2", "base", "demo"),
    }
    assert found["org/base"].path == str(base)
    assert found["org/base"].size_bytes == (base / "model.safetensors").stat().st_size
    assert found["cpt/mine"].size_bytes == 2 * (trained / "adapters.safetensors").stat().st_size
    assert found["ift/tuned"].path == str(tuned)
    assert found["alias"].path is None


def test_every_listed_model_can_be_asked_for_by_its_id(settings: Settings, root: Path) -> None:
    model_files.llama_folder(root / "a")
    model_files.llama_folder(root / "org" / "b")
    ids = [entry.id for entry in entries(settings)]
    assert ids == ["a", "org/b", "smollm2"]
    assert [resolve(name, settings).name for name in ids] == ids


def test_a_config_entry_hides_a_folder_of_its_name_as_in_resolve(settings: Settings, root: Path) -> None:
    folder = model_files.llama_folder(root / "a")
    ours = Settings(models_dir=str(root), cache_dir=settings.cache_dir, models={"a": ModelConfig(source=str(folder))})
    assert [entry for entry in entries(ours) if entry.id == "a"] == [
        CatalogEntry(
            id="a",
            name="a",
            path=str(folder),
            kind="base",
            size_bytes=(folder / "model.safetensors").stat().st_size,
            source="config",
        )
    ]


def test_links_out_of_models_dir_are_not_listed(settings: Settings, root: Path, tmp_path: Path) -> None:
    """resolve refuses them, so nobody should be offered one."""
    (root / "link").symlink_to(model_files.llama_folder(tmp_path / "outside"))
    (root / "cpt").mkdir()
    (root / "cpt" / "link").symlink_to(model_files.adapter_folder(tmp_path / "adapter"))
    assert [entry.id for entry in entries(settings)] == ["smollm2"]


def test_a_machine_without_models_still_offers_the_demo(tmp_path: Path) -> None:
    assert [entry.id for entry in entries(Settings(cache_dir=str(tmp_path)))] == ["smollm2"]
