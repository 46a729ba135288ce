"""API keys and a daemon that other machines reach: what it lets in, and that no key is found anywhere afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from daemons import Daemon, daemon

pytestmark = pytest.mark.e2e

MODELS = """
log_level = "debug"
spare = false
[models.e]
source = "echo"
[models.dies]
source = "echo"
options = {crash_at_token = 1}
[models.slow]
source = "echo"
options = {tokens_per_s = 5.0}
"""


def forgellm(*arguments: str, folder: Path, key: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FORGELLM_KEYS_FILE": str(folder / "keys.json"), **({"FORGELLM_API_KEY": key} if key else {})}
    command = [sys.executable, "-m", "forgellm.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=env)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def arguments_of(served: Daemon) -> str:
    """What `ps` shows of the daemon and everything below it."""
    return " ".join(
        word for process in (psutil.Process(served.process.pid), *served.family()) for word in process.cmdline()
    )


def test_a_daemon_for_other_machines_wants_keys_and_leaves_none_anywhere(tmp_path):
    made = [
        forgellm("keys", "create", "--name", name, *terms, folder=tmp_path)
        for name, *terms in (("boss", "--scope", "manage", "--scope", "infer"), ("guest", "--concurrency", "1"))
    ]
    boss, guest = (each.stdout.strip() for each in made)
    (tmp_path / "boss.key").write_text(boss)
    toml = f'keys_file = "{tmp_path}/keys.json"\n{MODELS}'
    with daemon(tmp_path, toml, "--host", "0.0.0.0") as served:  # noqa: S104
        # who gets in
        assert served.http.get("/api/health").status_code == 200
        assert served.http.get("/api/model/status").status_code == 401
        assert forgellm("ps", "--url", served.url, folder=tmp_path, key=guest).returncode == 0
        assert "FORGELLM_API_KEY" in forgellm("ps", "--url", served.url, folder=tmp_path).stderr
        refused = forgellm("load", "e", "--url", served.url, folder=tmp_path, key=guest)
        assert (refused.returncode, "manage" in refused.stderr) == (1, True)
        key_file = ("--url", served.url, "--api-key-file", str(tmp_path / "boss.key"))
        for model in ("e", "dies", "slow"):
            loaded = forgellm("load", model, *key_file, folder=tmp_path)
            assert loaded.returncode == 0, loaded.stderr
        # what keys are sent to while things go wrong
        ask = {"prompt": "one two three", "model": "e"}
        assert (
            served.http.post("/api/model/generate", json=ask, headers=bearer(guest)).json()["text"] == "one two three"
        )
        crashed = served.http.post("/api/model/generate", json={**ask, "model": "dies"}, headers=bearer(guest))
        assert crashed.status_code in {422, 503}
        assert served.http.get("/api/models", params={"api_key": boss}, headers=bearer(boss)).status_code == 400
        assert served.http.get(f"/{boss}", headers={"X-Api-Key": boss}).status_code == 400
        assert served.http.post("/api/model/generate", content=b"{", headers=bearer(boss)).status_code == 400
        # one answer at a time, and revoked in the middle of one
        slow = {"model": "slow", "prompt": "a b c d e", "stream": True}
        with served.http.stream("POST", "/api/model/generate", json=slow, headers=bearer(guest)) as running:
            lines = running.iter_lines()
            next(lines)
            busy = served.http.post("/api/model/generate", json=ask, headers=bearer(guest))
            assert (busy.status_code, busy.json()["code"]) == (429, "too_many_at_once")
            assert forgellm("keys", "revoke", "guest", folder=tmp_path).returncode == 0
            assert served.http.get("/api/model/status", headers=bearer(guest)).status_code == 401
            assert '"complete"' in list(lines)[-1]
        assert served.http.get("/api/model/status", headers=bearer(boss)).status_code == 200
        seen = arguments_of(served)
        assert served.stop(signal.SIGTERM) == 0
    (tmp_path / "boss.key").unlink()
    left = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.suffix == ".log" for path in left)
    for key in (boss, guest):
        assert key not in seen
        assert [path for path, content in left.items() if key.encode() in content] == []


@pytest.mark.parametrize(("content", "says"), [("{", "is no keys file"), ('{"version":1,"keys":[]}', "keys create")])
def test_a_daemon_whose_keys_cannot_be_used_does_not_start(tmp_path, content, says):
    (tmp_path / "keys.json").write_text(content)
    (tmp_path / "keys.json").chmod(0o600)
    started = forgellm("serve", "--host", "0.0.0.0", "--port", "0", folder=tmp_path)  # noqa: S104
    assert started.returncode == 2
    assert says in started.stderr.splitlines()[-1]
    assert "Traceback" not in started.stderr
