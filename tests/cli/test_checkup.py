"""forgellm doctor: every finding that it can make is made, and says what to do."""

import json
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from forgellm.cli import checkup, main
from forgellm.cli.checkup import Finding
from forgellm.config import ModelConfig, Settings

Check = Callable[[Settings], Iterator[Finding]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return of(tmp_path)


def of(folder: Path, **more: Any) -> Settings:
    return Settings(**{"cache_dir": str(folder), "keys_file": str(folder / "keys.json"), "port": 0, **more})


def levels(check: Check, settings: Settings) -> list[str]:
    found = list(check(settings))
    assert all(bool(each.remedy) == (each.level != "ok") for each in found), "what is wrong has a remedy"
    return [each.level for each in found]


def failing(check: Check, settings: Settings) -> Finding:
    (found,) = [each for each in check(settings) if each.level != "ok"]
    assert found.remedy
    return found


@pytest.mark.parametrize(
    "check", [checkup.python, checkup.memory, checkup.folders, checkup.api_keys, checkup.models, checkup.address]
)
def test_a_machine_in_order_is_told_so(check: Check, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "LITTLE_DISK_BYTES", 0)
    monkeypatch.setattr(checkup, "LITTLE_MEMORY_BYTES", 0)
    assert set(levels(check, settings)) == {"ok"}


def test_a_python_under_rosetta_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "sys", SimpleNamespace(platform="darwin", executable="/usr/bin/python3"))
    monkeypatch.setattr(checkup.platform, "machine", lambda: "x86_64")
    assert "Rosetta" in failing(checkup.python, settings).remedy


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no libmlx"), "ImportError: no libmlx"),
        (subprocess.CompletedProcess([], -11, "", ""), "exit code -11"),
        (subprocess.TimeoutExpired("python", 1), "no answer"),
    ],
)
def test_an_mlx_that_does_not_work_is_told(
    outcome: Any, says: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any, **kwargs: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(checkup.subprocess, "run", run)
    assert says in failing(checkup.mlx, settings).says


@pytest.mark.model
def test_the_mlx_of_this_machine_works(settings: Settings) -> None:
    assert levels(checkup.mlx, settings) == ["ok"]


@pytest.mark.process
def test_the_channel_of_this_python_works(settings: Settings) -> None:
    assert levels(checkup.channel, settings) == ["ok"]


def test_a_missing_compiler_is_told_unless_it_has_done_its_work(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkup, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(checkup.shutil, "which", lambda name: None)
    assert "gcc" in failing(checkup.blas, settings).remedy
    (tmp_path / "blas").mkdir()
    (tmp_path / "blas" / "shim.so").touch()
    assert levels(checkup.blas, settings) == ["ok"]
    assert failing(checkup.blas, of(tmp_path, fast_blas=False)).level == "warn"


def test_too_little_memory_and_too_large_a_budget_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(available=10**9, total=16 * 10**9)
    monkeypatch.setattr(checkup.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(checkup, "automatic_budget_bytes", lambda: 12 * 10**9)
    assert failing(checkup.memory, of(tmp_path)).says == "1.0 GB available; the workers may hold 12.0 GB"
    machine.available = 8 * 10**9
    assert "lower it" in failing(checkup.memory, of(tmp_path, memory_budget_bytes=10**12)).remedy


def test_low_limits_are_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.resource, "getrlimit", lambda number: (64, 128))
    assert levels(checkup.limits, settings) == ["warn", "warn"]
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(checkup.resource, "getrlimit", lambda number: (unlimited, unlimited))
    assert levels(checkup.limits, settings) == ["ok", "ok"]


def test_a_port_of_somebody_else_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:  # bound, and not listening: whoever asks is refused at once
        other.bind(("127.0.0.1", 0))
        assert failing(checkup.address, of(tmp_path, port=other.getsockname()[1])).level == "fail"


def test_a_state_folder_that_is_open_to_others_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    assert failing(checkup.folders, settings).remedy == f"chmod 700 {tmp_path / 'state'}"


def test_a_socket_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    assert "state_dir" in failing(checkup.folders, of(tmp_path, state_dir=str(tmp_path / ("x" * 120)))).remedy


def test_folders_that_may_not_be_written_are_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: False)
    assert "fail" in levels(checkup.folders, settings)


def test_keys_that_others_may_write_and_missing_ones_are_told(tmp_path: Path) -> None:
    assert "keys create" in failing(checkup.api_keys, of(tmp_path, host="192.0.2.1")).remedy
    (tmp_path / "keys.json").write_text("{}", "utf-8")
    (tmp_path / "keys.json").chmod(0o666)
    assert "chmod 600" in failing(checkup.api_keys, of(tmp_path)).remedy


def test_a_model_of_the_settings_that_is_not_there_is_told(tmp_path: Path) -> None:
    models = {"gone": ModelConfig(source=str(tmp_path / "nowhere")), "there": ModelConfig(source="echo")}
    found = failing(checkup.models, of(tmp_path, models=models))
    assert found.says.startswith("gone: ")
    assert found.remedy == "mend or remove [models.gone]"


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_says_whether_something_will_not_work(
    level: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding("x", level, "it is so", "" if level == "ok" else "mend it")
    monkeypatch.setattr(checkup, "CHECKS", (lambda settings: iter([finding]),))
    told = CliRunner().invoke(main, ["doctor"])
    assert told.exit_code == code
    assert told.stdout.startswith(f"{level:<5} x: it is so\n")
    assert ("→ mend it" in told.stdout) == (level != "ok")
    as_json = CliRunner().invoke(main, ["doctor", "--json"])
    assert json.loads(as_json.stdout) == {"check": "x", "level": level, "says": "it is so", "remedy": finding.remedy}
