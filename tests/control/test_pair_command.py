"""`forgellm keys pair` on one machine, `forgellm pair` on the other, and the list of what is paired."""

import json

import pytest
from click.testing import CliRunner, Result
from tls_parts import Linked, linked

from forgellm.cli import main
from forgellm.control import certificate, machines


def run(folder, *arguments: str, host: str | None = "10.0.0.1", text: str | None = None) -> Result:
    env = {"FORGELLM_MACHINES_DIR": str(folder), "FORGELLM_KEYS_FILE": str(folder / "keys.json")}
    return CliRunner().invoke(main, arguments, input=text, env=env | ({"FORGELLM_CONTROL_HOST": host} if host else {}))


def code_of(place: Linked) -> str:
    printed = run(place.here, "keys", "pair")
    assert printed.exit_code == 0
    assert "forgellm pair 10.0.0.1:5002 CODE" in printed.stderr
    return printed.stdout.strip()


def test_two_commands_pair_two_machines_and_a_third_ends_it(tmp_path):
    with linked(tmp_path) as place:
        code = code_of(place)
        paired = run(place.there, "pair", place.address.place, code)
        assert paired.exit_code == 0
        assert certificate.own(place.here).fingerprint.hex() in paired.stdout
        assert str(place.address) in paired.stderr
        place.client().about()
        listed = run(place.here, "keys", "list").stdout
        assert "may use the daemon here" in listed
        assert certificate.own(place.there).fingerprint.hex() in listed
        assert f"at {place.address}" in run(place.there, "keys", "list").stdout
        entry = json.loads(run(place.here, "keys", "list", "--json").stdout)[0]
        assert (entry["role"], "key" in entry) == ("client", False)
        assert "revoked" in run(place.here, "keys", "revoke", entry["id"]).stdout
        assert machines.read(place.here) == []


def test_the_code_may_be_typed_where_no_other_program_sees_it(tmp_path):
    with linked(tmp_path) as place:
        made = json.loads(run(place.here, "keys", "pair", "--json").stdout)
        paired = run(place.there, "pair", place.address.place, "--json", text=made["code"] + "\n")
        assert paired.exit_code == 0
        assert made["code"] not in paired.output
        assert json.loads(paired.stdout)["fingerprint"] == made["fingerprint"]


@pytest.mark.parametrize("arguments", [("pair", "nowhere", "pair-x"), ("pair", "127.0.0.1:1", "pair-x")])
def test_a_wrong_address_or_code_is_told_in_a_sentence(tmp_path, arguments):
    failed = run(tmp_path, *arguments)
    assert failed.exit_code in {1, 2}
    assert failed.stderr.startswith("Error: ")


def test_no_code_is_made_for_a_daemon_that_listens_for_nobody(tmp_path):
    refused = run(tmp_path, "keys", "pair", host=None)
    assert (refused.exit_code, "control_host" in refused.stderr) == (2, True)
    assert not (tmp_path / "pairing.json").exists()


def test_what_is_neither_a_key_nor_a_machine_cannot_be_revoked(tmp_path):
    assert "no key and no machine" in run(tmp_path, "keys", "revoke", "nobody").stderr
