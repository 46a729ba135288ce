"""`forgellm demo`, as `make demo` runs it."""

import json
import os
import subprocess
import sys

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model]


@pytest.mark.timeout(400)
def test_the_demo_answers_survives_a_kill_answers_again_and_leaves_nothing():
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    command = [sys.executable, "-m", "forgellm.cli", "demo", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert run.returncode == 0, run.stderr
    steps = [json.loads(line) for line in run.stdout.splitlines()]
    assert [step["step"] for step in steps] == [
        *("daemon", "loaded", "answered", "memory", "killed", "respawned", "answered", "stopped"),
    ]
    by_name = {step["step"]: step for step in steps}
    assert all("Paris" in step["answer"] for step in steps if step["step"] == "answered")
    assert by_name["respawned"]["pid"] != by_name["killed"]["pid"] == by_name["loaded"]["pid"]
    assert by_name["respawned"]["life"] > by_name["loaded"]["life"]
    assert by_name["memory"]["footprint_bytes"] > 100 << 20
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    assert not psutil.pid_exists(by_name["daemon"]["pid"])


def test_a_demo_that_cannot_hold_says_why_and_is_not_0(tmp_path):
    """The echo engine does not know the capital of France."""
    env = {**os.environ, "FORGELLM_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "forgellm.cli", "demo", "--model", "echo"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert run.returncode == 1
    assert "has no Paris" in run.stderr.splitlines()[-1]
