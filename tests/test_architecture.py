"""The import contracts of setup.cfg hold, and each of them can fail."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# contract: (module, what it must not import). Added to a copy of the sources, each breaks exactly one contract.
OFFENCES = {
    "layers": ("forgellm/catalog/__init__.py", "import forgellm.supervisor.status"),
    "api-without-worker": ("forgellm/api/__init__.py", "import forgellm.worker.engine"),
    "one-way-to-a-worker": ("forgellm/supervisor/supervisor.py", "import forgellm.worker.main"),
    "pure-pool": ("forgellm/supervisor/pool.py", "import time"),
    "web-at-the-edge": ("forgellm/supervisor/status.py", "import flask"),
    "hub-client-apart": ("forgellm/catalog/downloads.py", "import huggingface_hub"),
    "mlx-in-engines": ("forgellm/worker/echo.py", "import mlx.core"),
}


def contracts() -> dict[str, str]:
    """Every contract of setup.cfg: its name in prose by its id."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    prefix = "importlinter:contract:"
    return {s.removeprefix(prefix): config[s]["name"] for s in config.sections() if s.startswith(prefix)}


def verdicts(sources: Path) -> dict[str, str]:
    """KEPT or BROKEN by contract name, as import-linter sees the package under `sources`."""
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--config", str(ROOT / "setup.cfg"), "--no-cache"],
        cwd=sources,
        env={**os.environ, "PYTHONPATH": str(sources), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", run.stdout, re.MULTILINE))
    assert found, run.stdout + run.stderr
    assert (run.returncode == 0) == ("BROKEN" not in found.values())
    return found


def test_every_import_contract_holds() -> None:
    assert verdicts(ROOT / "src") == dict.fromkeys(contracts().values(), "KEPT")


def test_setup_cfg_holds_import_contracts_and_nothing_else() -> None:
    """[metadata] there would leak into the package, [coverage:run] would shadow pyproject.toml."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert all(section.split(":")[0] == "importlinter" for section in config.sections())


def test_every_contract_has_an_offence() -> None:
    assert OFFENCES.keys() == contracts().keys()


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_broken_contract_fails_alone(contract: str, tmp_path: Path) -> None:
    """A contract that never fails guards nothing; one that fails along with another says the wrong thing."""
    shutil.copytree(ROOT / "src" / "forgellm", tmp_path / "forgellm", ignore=shutil.ignore_patterns("__pycache__"))
    place, offence = OFFENCES[contract]
    module = tmp_path / place
    module.write_text(module.read_text("utf-8") + f"\n{offence}\n", "utf-8")
    broken = {name for name, verdict in verdicts(tmp_path).items() if verdict == "BROKEN"}
    assert broken == {contracts()[contract]}
