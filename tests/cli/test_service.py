"""forgellm service: the files it writes, and that the system's own tools accept them."""

import json
import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forgellm.cli import main
from forgellm.cli.service_files import LABEL, daemon_command, launchd_agent, systemd_unit

linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def service(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["service", *arguments])


def test_a_unit_quotes_what_systemd_would_expand() -> None:
    unit = systemd_unit(["/opt/my python", "-c", '50% of "$HOME" \\'])
    assert 'ExecStart="/opt/my python" "-c" "50%% of \\"$$HOME\\" \\\\"\n' in unit


def test_a_unit_has_what_the_daemon_relies_on() -> None:
    lines = systemd_unit(["/bin/x"]).splitlines()
    assert {"Type=notify", "WatchdogSec=30", "OOMPolicy=continue", "KillMode=mixed", "Restart=on-failure"} <= {*lines}


def test_an_agent_is_a_property_list_that_restarts_what_failed() -> None:
    agent = plistlib.loads(launchd_agent(["/bin/x", "-y"], Path("/log")))
    assert (agent["Label"], agent["ProgramArguments"]) == (LABEL, ["/bin/x", "-y"])
    assert agent["KeepAlive"] == {"SuccessfulExit": False}


def test_the_command_is_this_python_and_the_settings_file() -> None:
    assert daemon_command(Path("/c.toml")) == [sys.executable, "-m", "forgellm.daemon", "--config", "/c.toml"]


@linux
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.e2e
def test_systemd_has_nothing_to_say_against_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "forgellm.service"
    unit.write_text(systemd_unit(daemon_command(None)), "utf-8")
    done = subprocess.run(
        [str(shutil.which("systemd-analyze")), "--user", "--man=no", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"XDG_RUNTIME_DIR": str(tmp_path), **os.environ},
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@linux
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.e2e
def test_a_unit_that_systemd_finds_fault_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-analyze then says so, and exits with 0."""
    text = systemd_unit(["/bin/true"]).replace("WatchdogSec", "WotchdogSec")
    monkeypatch.setattr("forgellm.cli.service.systemd_unit", lambda command: text)
    result = service("install", "--no-start")
    assert result.exit_code == 1
    assert "WotchdogSec" in result.stderr


@linux
@pytest.mark.e2e
def test_install_status_uninstall(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("port = 7000\n", "utf-8")
    file = tmp_path / "config" / "systemd" / "user" / "forgellm.service"
    installed = service("install", "--no-start", "--config", str(config), "--json")
    assert installed.exit_code == 0, installed.output
    assert json.loads(installed.stdout)["file"] == str(file)
    assert str(config) in file.read_text("utf-8")
    found = service("status", "--json")
    assert (found.exit_code, json.loads(found.stdout)["installed"]) == (1, True)
    assert f"{file}: installed, not running (" in service("status").stdout
    assert service("uninstall").stdout == f"{file} is removed\n"
    assert not file.exists()
    assert "not installed" in service("status").stdout
    assert service("uninstall").stdout == f"there is no {file}\n"


def test_settings_that_cannot_be_used_are_told_before_anything_is_written(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("prot = 1\n", "utf-8")
    result = service("install", "--no-start", "--config", str(config))
    assert result.exit_code == 2
    assert "prot" in result.stderr
    assert not (tmp_path / "config").exists()
