"""Dockerfile and compose.yaml without Docker: what they name exists, and what the daemon keeps is on the volume."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from forgellm import Settings
from forgellm.cli import main
from forgellm.cli.service_files import STOP_S
from forgellm.config import ENV_PREFIX, load_settings

ROOT = Path(__file__).parent.parent
VOLUME = Path("/data")


@pytest.fixture(scope="module")
def steps() -> dict[str, list[str]]:
    """The Dockerfile's instructions: {name: [the rest of each]}, lines that go on joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        found.setdefault(name, []).append(rest)
    return found


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    assert set(compose) == {"services", "volumes"}
    (found,) = compose["services"].values()
    return dict(found)


def variables(steps: dict[str, list[str]]) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in steps["ENV"] for pair in line.split())


def test_what_is_copied_is_in_the_checkout_and_enough_for_the_build(steps: dict[str, list[str]]) -> None:
    copied = {name for line in steps["COPY"] for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"pyproject.toml", "src", project["readme"], *project["license-files"]} <= copied
    python = re.fullmatch(r"python:(3\.\d+)-slim", steps["FROM"][0])
    assert python is not None
    assert python[1] in {"3.11", "3.12", "3.13"}


def test_what_it_runs_is_a_command_of_ours(steps: dict[str, list[str]]) -> None:
    entry, words = json.loads(steps["ENTRYPOINT"][0]), json.loads(steps["CMD"][0])
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert entry[:2] == ["tini", "--"]
    assert entry[2] in scripts
    assert "tini" in steps["RUN"][0].split()
    told = CliRunner().invoke(main, [*words, "--help"])
    assert told.exit_code == 0, told.output


def test_the_commands_that_the_two_files_and_the_docs_tell_exist() -> None:
    texts = [(ROOT / name).read_text("utf-8") for name in ("Dockerfile", "compose.yaml", "docs/operations.md")]
    told = {words.strip(" `") for text in texts for words in re.findall(r"(?:run|--rm) forgellm ([a-z ]+)", text)}
    assert told == {"keys create"}
    for words in told:
        assert CliRunner().invoke(main, [*words.split(), "--help"]).exit_code == 0


def test_what_the_daemon_keeps_is_on_the_volume(
    steps: dict[str, list[str]], service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All else is gone with the container: its root is read-only, and its home in memory."""
    own = {name: value for name, value in variables(steps).items() if name.startswith(ENV_PREFIX)}
    assert {name.removeprefix(ENV_PREFIX).lower() for name in own} <= set(Settings.__struct_fields__)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    found = load_settings()
    for path in (found.cache_path, found.log_path, found.keys_path, found.machines_path, found.socket_path):
        assert path.is_relative_to(VOLUME)
    assert Path(variables(steps)["HF_HOME"]).is_relative_to(VOLUME)
    assert steps["VOLUME"] == [str(VOLUME)]
    assert service["read_only"] is True
    assert [each.split(":")[1] for each in service["volumes"]] == [str(VOLUME)]
    home = steps["WORKDIR"][-1]
    assert {home, "/tmp"} == set(service["tmpfs"])


def test_its_port_its_health_and_the_time_it_has_to_stop_are_the_daemons(
    steps: dict[str, list[str]], service: dict[str, Any]
) -> None:
    port = str(Settings().port)
    assert steps["EXPOSE"] == [port]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert service["stop_grace_period"] == f"{STOP_S}s"
    (health,) = steps["HEALTHCHECK"]
    command = json.loads(health.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    ast.parse(command[2])
    assert f"http://127.0.0.1:{port}/healthz" in command[2]
