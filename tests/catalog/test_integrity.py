"""Rows 12 and 47: files that are not the ones that were checked, or not what their sha256 says."""

import hashlib
import os
from pathlib import Path

import pytest

import model_files
from forgellm.catalog import entries, integrity, resolve
from forgellm.config import ModelConfig, Settings
from forgellm.errors import ModelChanged, ModelInvalid
from forgellm.messages import ModelFile, ModelSource

REVISION = "0123456789abcdef0123456789abcdef01234567"


def source(*paths: Path) -> ModelSource:
    return ModelSource(name="m", kind="folder", files=integrity.note(paths))


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A file of the Hugging Face cache: a link to a blob that is named by its sha256."""
    content = os.urandom(1 << 16)
    target = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    target.parent.mkdir()
    target.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(target)
    return link


def flip_a_bit(path: Path) -> None:
    """Nothing but the content shows it: size, time and inode stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(4321)
        byte = file.read(1)[0]
        file.seek(4321)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def quiet(done: float, stage: str) -> None:
    assert 0 <= done <= 1
    assert "sha256" in stage


def test_chaos_012_a_file_that_was_cut_replaced_or_removed_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"x" * 100)
    noted = source(path)
    integrity.check_unchanged(noted)
    os.truncate(path, 50)
    with pytest.raises(ModelChanged, match=r"weights.gguf was changed.*load m again"):
        integrity.check_unchanged(noted)
    path.write_bytes(b"x" * 100)
    noted = source(path)
    other = tmp_path / "other"
    other.write_bytes(b"y" * 100)
    os.utime(other, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    with pytest.raises(ModelChanged):
        integrity.check_unchanged(noted)
    noted = source(path)
    path.unlink()
    with pytest.raises(ModelChanged):
        integrity.check_unchanged(noted)


def test_a_models_files_are_noted_where_it_is_resolved(tmp_path: Path) -> None:
    folder = model_files.llama_folder(tmp_path / "llama")
    found = resolve(str(folder), Settings(cache_dir=str(tmp_path)))
    assert {Path(file.path).name for file in found.files} >= {"config.json", "model.safetensors"}
    integrity.check_unchanged(found)


def test_chaos_047_a_flipped_bit_is_found_where_the_sha256_is_known(blob: Path, tmp_path: Path) -> None:
    flip_a_bit(blob)
    with pytest.raises(ModelInvalid, match=r"model.safetensors has sha256 .* download the model again"):
        integrity.verify(integrity.note([blob]), tmp_path / "cache", quiet)


def test_chaos_047_a_whole_file_is_hashed_once_and_again_when_it_is_another_one(blob: Path, tmp_path: Path) -> None:
    said: list[str] = []
    noted = integrity.note([blob])
    for _ in range(2):
        assert integrity.verify(noted, tmp_path / "cache", lambda done, stage: said.append(stage)) == "verified"
    assert len(said) == 1
    os.utime(blob, ns=(1, 1))
    flip_a_bit(blob)
    with pytest.raises(ModelInvalid):
        integrity.verify(integrity.note([blob]), tmp_path / "cache", quiet)


def test_chaos_047_without_a_known_sha256_it_says_unverified(blob: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(b"x")
    (noted,) = integrity.note([plain])
    assert noted.sha256 is None
    assert integrity.verify(integrity.note([blob, plain]), tmp_path / "cache", quiet) == "unverified"
    config = ModelFile(str(tmp_path / "config.json"), 1, 1, 1)
    assert integrity.foresee([config, *integrity.note([blob])]) == "verified", "small files have no sha256 there"
    assert integrity.foresee([config]) == "unverified"


def test_a_cache_folder_that_cannot_be_written_only_costs_the_check(blob: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert integrity.verify(integrity.note([blob]), tmp_path / "cache", quiet) == "verified"


def test_the_list_of_models_says_whose_sha256_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in sorted(model_files.llama_folder(tmp_path / "source").iterdir()):
        target = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(target)
        (snapshot / file.name).symlink_to(target)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    model_files.llama_folder(tmp_path / "models" / "mine")
    settings = Settings(
        cache_dir=str(tmp_path / "cache"),
        models_dir=str(tmp_path / "models"),
        models={"e": ModelConfig(source="echo"), "d": ModelConfig(source="smollm2")},
    )
    found = {entry.id: entry.integrity for entry in entries(settings)}
    assert found == {
        "e": "none",
        "d": "verified",
        "smollm2": "verified",
        "mine": "unverified",
        "org/name": "verified",
    }
