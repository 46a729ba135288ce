"""The list of paired machines, and pairing codes at rest."""

import time

import pytest

from forgellm.control import machines
from forgellm.control.address import parse, parse_place
from forgellm.control.machines import CODE_TRIES
from forgellm.errors import ConfigError, InvalidRequest, NotFound, SupervisorUnavailable

FINGERPRINT = bytes(range(32))


def machine(name: str, certificate: bytes = b"c", **options):
    return machines.new_machine(name, options.pop("role", "client"), certificate, bytes(32), **options)


def redeems(folder, code: str) -> bool:
    try:
        machines.redeem(folder, machines.parse_code(code)[1])
    except InvalidRequest:
        return False
    return True


def test_a_code_says_whom_to_trust_and_is_kept_as_a_hash(tmp_path):
    code = machines.new_code(tmp_path, FINGERPRINT)
    fingerprint, secret = machines.parse_code(code)
    assert fingerprint == FINGERPRINT
    assert len(secret) * 8 >= 128
    kept = (tmp_path / "pairing.json").read_bytes()
    assert secret.hex().encode() not in kept
    assert code[-22:].encode() not in kept
    assert (tmp_path / "pairing.json").stat().st_mode & 0o777 == 0o600


def test_a_code_counts_once_and_a_newer_one_voids_it(tmp_path):
    old = machines.new_code(tmp_path, FINGERPRINT)
    new = machines.new_code(tmp_path, FINGERPRINT)
    assert not redeems(tmp_path, old)
    assert redeems(tmp_path, new)
    assert not redeems(tmp_path, new)


def test_guesses_are_counted(tmp_path):
    code = machines.new_code(tmp_path, FINGERPRINT)
    for _ in range(CODE_TRIES - 1):
        with pytest.raises(InvalidRequest):
            machines.redeem(tmp_path, bytes(16))
    assert redeems(tmp_path, code)
    code = machines.new_code(tmp_path, FINGERPRINT)
    for _ in range(CODE_TRIES):
        with pytest.raises(InvalidRequest):
            machines.redeem(tmp_path, bytes(16))
    assert not redeems(tmp_path, code)


@pytest.mark.parametrize(("clock", "moved_s"), [("monotonic", 601), ("time", 601), ("time", -60), ("monotonic", -60)])
def test_a_code_is_void_after_ten_minutes_whichever_clock_says_so(tmp_path, monkeypatch, clock, moved_s):
    code = machines.new_code(tmp_path, FINGERPRINT)
    real = getattr(time, clock)
    with monkeypatch.context() as patch:
        patch.setattr(machines.time, clock, lambda: real() + moved_s)
        assert not redeems(tmp_path, code)
    assert not (tmp_path / "pairing.json").exists()


@pytest.mark.parametrize("text", ["", "pair-", "pair-AAAA", "fk-" + "A" * 64, "pair-" + "?" * 64, "pair-" + "A" * 68])
def test_what_is_no_code_is_refused_and_not_repeated(text):
    with pytest.raises(InvalidRequest) as caught:
        machines.parse_code(text)
    assert not text or text not in caught.value.message.replace("keys pair", "")


def test_a_machine_that_is_paired_again_has_one_entry(tmp_path):
    machines.add(tmp_path, machine("a", b"1"))
    machines.add(tmp_path, machine("a-again", b"1"))
    machines.add(tmp_path, machine("d", b"2", role="daemon", address="h:1"))
    machines.add(tmp_path, machine("d-new", b"3", role="daemon", address="h:1"))
    assert [each.name for each in machines.read(tmp_path)] == ["a-again", "d-new"]
    assert machines.daemon_at(tmp_path, "h:1").certificate == b"3"
    with pytest.raises(SupervisorUnavailable, match="forgellm pair h:2"):
        machines.daemon_at(tmp_path, "h:2")


def test_a_machine_is_revoked_by_id_or_by_a_name_that_is_its_own(tmp_path):
    first, second, third = machine("a", b"1"), machine("a", b"2"), machine("b", b"3")
    for each in (first, second, third):
        machines.add(tmp_path, each)
    with pytest.raises(InvalidRequest, match="2 machines"):
        machines.remove(tmp_path, "a")
    assert machines.remove(tmp_path, first.id) == first
    assert machines.remove(tmp_path, "b") == third
    with pytest.raises(NotFound):
        machines.remove(tmp_path, "b")
    assert machines.read(tmp_path) == [second]


def test_a_list_that_is_broken_or_open_is_refused_with_the_remedy(tmp_path):
    machines.add(tmp_path, machine("a"))
    path = machines.file_of(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="pair again"):
        machines.read(tmp_path)
    path.chmod(0o600)
    path.write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match="broken"):
        machines.read(tmp_path)


def test_addresses_of_machines_read_as_they_are_written(tmp_path):
    for text in ("tls://mac.local:5002", "tls://10.0.0.2:5002", "tls://[fe80::1]:5002"):
        assert str(parse(text, tmp_path)) == text
        assert str(parse_place(text.removeprefix("tls://"), tmp_path)) == text


@pytest.mark.parametrize("text", ["", "host", "host:", "host:0", "host:99999", "host:x", "a@b:1", "host:1/x", ":5"])
def test_what_is_no_place_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="host:port"):
        parse_place(text, tmp_path)
