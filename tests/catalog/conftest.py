"""A home folder, a Hugging Face cache and a models folder of the test's own."""

from pathlib import Path

import pytest

from forgellm.config import Settings


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever models the machine has must not decide a test."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The models_dir of `settings`."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(tmp_path: Path, root: Path) -> Settings:
    return Settings(models_dir=str(root), cache_dir=str(tmp_path / "cache"))
