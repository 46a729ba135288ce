"""The keys file: what is in it, who may write it, and that no writer undoes another one's change."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from forgellm import keys, private_file
from forgellm.errors import ConfigError, InvalidRequest, NotFound, Unavailable

CREATES = """
import sys
from pathlib import Path
from forgellm import keys
for n in range(10):
    print(keys.create(Path(sys.argv[1]), name=f"{sys.argv[2]}-{n}")[1])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "forgellm" / "keys.json"


def ring(path: Path) -> keys.Ring:
    found = keys.read(path)
    assert found is not None
    return found


def test_a_key_is_256_random_bits_and_only_its_hash_is_kept(path):
    key, secret = keys.create(path, name="laptop")
    assert keys.SHAPE.fullmatch(secret)
    assert secret != keys.create(path)[1]
    assert secret.removeprefix("fk-") not in path.read_text("utf-8")
    assert re.fullmatch("[0-9a-f]{64}", key.sha256)
    assert ring(path).find(secret) == key


@pytest.mark.parametrize("wrong", ["", "fk-", "laptop", "fk-" + "A" * 43, "k\udc80ey"])
def test_nothing_else_is_a_key(path, wrong):
    keys.create(path, name="laptop")
    assert ring(path).find(wrong) is None


def test_neither_the_id_nor_the_hash_of_a_key_is_one(path):
    key, _ = keys.create(path)
    assert ring(path).find(key.id) is None
    assert ring(path).find(key.sha256) is None


def test_only_hashes_are_compared_and_in_constant_time(path, monkeypatch):
    """What is sent meets nothing that it could be compared with byte by byte."""
    key, secret = keys.create(path)
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda *pair: compared.append(pair))
    assert ring(path).find(secret) is None
    assert compared == [(key.sha256, keys.hash_of(secret))]


def test_only_the_owner_can_read_the_file_whatever_the_umask(path):
    before = os.umask(0)
    try:
        keys.create(path)
        keys.create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(each.name for each in path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_a_file_of_before_keys_had_a_load_policy_is_read(path):
    key, secret = keys.create(path, load_policy="preloaded")
    assert ring(path).find(secret) == key
    assert key.load_policy == "preloaded"
    written = json.loads(path.read_text("utf-8"))
    assert written["version"] == 1
    del written["keys"][0]["load_policy"]
    path.write_text(json.dumps(written), "utf-8")
    found = ring(path).find(secret)
    assert found is not None
    assert found.load_policy is None


def test_a_file_that_others_may_write_is_refused(path):
    """Whoever writes it lets himself in."""
    keys.create(path)
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.read(path)


def test_no_file_means_no_keys_and_an_empty_one_that_nobody_is_let_in(path):
    """Otherwise to revoke the last key would open the server."""
    assert keys.read(path) is None
    key, secret = keys.create(path)
    keys.revoke(path, key.id)
    assert ring(path).keys == ()
    assert ring(path).find(secret) is None


def test_a_key_is_revoked_by_id_or_name_and_the_others_stay(path):
    first, _ = keys.create(path, name="a")
    keys.create(path, name="b")
    _, third = keys.create(path)
    assert keys.revoke(path, first.id) == first
    assert keys.revoke(path, "b").name == "b"
    assert len(ring(path).keys) == 1
    assert ring(path).find(third)


def test_revoking_what_is_not_there_says_how_to_find_out(path):
    with pytest.raises(NotFound, match="keys list"):
        keys.revoke(path, "nobody")


def test_a_key_given_in_place_of_its_name_is_not_repeated(path):
    _, secret = keys.create(path)
    with pytest.raises(InvalidRequest) as caught:
        keys.revoke(path, secret)
    assert secret not in str(caught.value)


def test_a_name_is_taken_once(path):
    key, _ = keys.create(path, name="laptop")
    for taken in ("laptop", key.id):
        with pytest.raises(InvalidRequest, match="already"):
            keys.create(path, name=taken)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": "two words"}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("root",)}, "scopes"),
        ({"models": ()}, "models"),
        ({"rate_per_min": 0}, "rate_per_min"),
        ({"concurrency": -1}, "concurrency"),
    ],
)
def test_a_key_that_cannot_be_is_refused_by_field_and_changes_nothing(path, wrong, field):
    with pytest.raises(InvalidRequest, match=field):
        keys.create(path, **wrong)
    assert keys.read(path) is None


GOOD = {"id": "k1", "name": "a", "sha256": "0" * 64, "scopes": ["infer"], "created": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "keys": []}',
        json.dumps({"version": 1, "keys": [{**GOOD, "sha256": "short"}]}).encode(),
        json.dumps({"version": 1, "keys": [{**GOOD, "scopes": ["all"]}]}).encode(),
        json.dumps({"version": 1, "keys": [{**GOOD, "rate": 5}]}).encode(),
        json.dumps({"version": 1, "keys": [GOOD, GOOD]}).encode(),
    ],
)
def test_a_broken_file_is_an_error_that_names_it_and_never_no_keys(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        keys.read(path)
    with pytest.raises(ConfigError):
        keys.create(path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_an_error_too(path):
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot read"):
        keys.read(path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="keys file"):
        keys.create(tmp_path / "file" / "keys.json")


def test_a_link_to_the_file_stays_one(tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real.json")
    _, secret = keys.create(link)
    assert link.is_symlink()
    assert ring(tmp_path / "real.json").find(secret)


def test_a_lock_that_is_held_for_long_ends_the_wait(path, monkeypatch):
    monkeypatch.setattr(private_file, "LOCK_TIMEOUT_S", 0.0)
    with private_file.locked(path, "the keys file"), pytest.raises(Unavailable, match="lock"):
        keys.create(path)


@pytest.mark.process
def test_processes_that_create_keys_at_once_lose_none(path):
    command = [sys.executable, "-c", CREATES, str(path)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"]
    secrets = [line for writer in writers for line in writer.communicate(timeout=30)[0].split()]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(secrets) == 30
    assert all(ring(path).find(secret) for secret in secrets)
