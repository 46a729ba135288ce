"""Repositories in the Hugging Face cache, laid out as huggingface_hub does: refs, snapshots of links, blobs."""

from pathlib import Path

import pytest

import model_files
from forgellm.catalog import hub, resolve
from forgellm.config import Settings
from forgellm.errors import ModelInvalid, ModelNotFound

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """`org/name`, every file a link to a blob."""
    folder = tmp_path / "hub" / "models--org--name"
    source = model_files.llama_folder(tmp_path / "source")
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        blob = folder / "blobs" / f"{number:040x}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    return folder


def test_a_repository_is_the_snapshot_of_its_main_ref(settings: Settings, repository: Path) -> None:
    found = resolve("org/name", settings)
    assert (found.kind, found.path) == ("folder", str(repository / "snapshots" / REVISION))
    assert found.weights_bytes > 0


def test_a_local_folder_wins_over_the_cache(settings: Settings, repository: Path, root: Path) -> None:
    local = model_files.llama_folder(root / "org" / "name")
    assert resolve("org/name", settings).path == str(local)


@pytest.mark.parametrize("ref", ["", "../../../etc", "f" * 40])
def test_a_repository_whose_ref_leads_nowhere_says_how_to_complete_it(
    ref: str, settings: Settings, repository: Path
) -> None:
    (repository / "refs" / "main").write_text(ref)
    with pytest.raises(ModelInvalid, match="hf download org/name"):
        resolve("org/name", settings)


def test_a_link_out_of_the_repository_is_refused(settings: Settings, repository: Path, tmp_path: Path) -> None:
    weights = repository / "snapshots" / REVISION / "model.safetensors"
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(outside)
    with pytest.raises(ModelInvalid, match="link out"):
        resolve("org/name", settings)


def test_a_repository_of_one_gguf_file_is_that_file(settings: Settings, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--org--quant" / "snapshots" / REVISION
    blob = snapshot.parent.parent / "blobs" / "b"
    for folder in (snapshot, blob.parent, snapshot.parent.parent / "refs"):
        folder.mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text(REVISION)
    blob.write_bytes(model_files.gguf(model_files.llama_metadata(), model_files.llama_tensors()))
    (snapshot / "q.gguf").symlink_to(blob)
    assert resolve("org/quant", settings).path == str(snapshot / "q.gguf")
    outside = tmp_path / "outside.gguf"
    blob.rename(outside)
    (snapshot / "q.gguf").unlink()
    (snapshot / "q.gguf").symlink_to(outside)
    with pytest.raises(ModelInvalid, match="link out"):
        resolve("org/quant", settings)


@pytest.mark.parametrize("name", ["org/other", "org--name", "org/na..me", "org/name/x", "órg/name"])
def test_other_names_are_not_in_the_cache(name: str, settings: Settings, repository: Path) -> None:
    with pytest.raises(ModelNotFound):
        resolve(name, settings)


@pytest.mark.parametrize(
    ("env", "root"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_puts_it(env: dict[str, str], root: str) -> None:
    assert hub.cache_root(env) == Path(root)


def test_all_repositories_with_a_snapshot_are_listed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--org--partial").mkdir()
    (tmp_path / "hub" / "datasets--org--data").mkdir()
    assert list(hub.repositories()) == ["org/name"]
