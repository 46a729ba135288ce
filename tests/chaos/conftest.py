"""Starts early what takes long and mostly sleeps, so that it runs beside the other tests of this folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("real_limits.py")
TIMEOUT_S = 170.0


@pytest.fixture(scope="package")
def real_limits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real_limits")


@pytest.fixture(scope="package", autouse=True)
def _real_limits(request: pytest.FixtureRequest, real_limits_folder: Path) -> Iterator["subprocess.Popen[str] | None"]:
    """The process, from the first test of this folder on, if the session has a test that asks for its findings."""
    if not any("real_limits" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    paths = os.pathsep.join([str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(real_limits_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.fixture(scope="package")
def real_limits(_real_limits: "subprocess.Popen[str] | None") -> dict[str, Any]:
    """What it found, once it has ended."""
    assert _real_limits is not None
    said, errors = _real_limits.communicate(timeout=TIMEOUT_S)
    assert _real_limits.returncode == 0, errors
    return dict(json.loads(said))
