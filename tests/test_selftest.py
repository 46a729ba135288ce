"""`forgellm selftest`: the kill matrix as users run it."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from forgellm.cli import main, selftest


def outcome(**changes: object) -> selftest.Outcome:
    values: dict[str, object] = {"fault": "x", "detected_ms": 1.0, "recovered_s": 1.0, "requests": 4, "lost": 0}
    return selftest.Outcome(**{**values, "memory_returned_bytes": 1, **changes})  # type: ignore[arg-type]


def test_one_lost_request_or_a_process_that_stays_is_a_failure() -> None:
    assert outcome().is_good
    assert not outcome(lost=1).is_good
    assert not outcome(memory_returned_bytes=None).is_good


@pytest.mark.process
@pytest.mark.chaos
def test_no_fault_of_the_matrix_loses_a_request_or_memory() -> None:
    result = CliRunner().invoke(main, ["selftest", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"]
    assert [row["fault"] for row in found["faults"]] == [fault.name for fault in selftest.FAULTS]
    for row in found["faults"]:
        print(row)
        assert (row["requests"], row["lost"]) == (selftest.STREAMS, 0)
        assert row["memory_returned_bytes"] > 1 << 20
        assert 0 < row["detected_ms"] <= row["recovered_s"] * 1000
    hang = found["faults"][-1]
    assert hang["detected_ms"] < 8000  # its limit is 3 s


@pytest.mark.process
def test_a_lost_request_is_told_and_is_not_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test that cannot fail would prove nothing."""
    monkeypatch.setattr(selftest, "FAULTS", [replace(selftest.FAULTS[0], name="SIGKILL and a wrong text")])
    monkeypatch.setattr(selftest, "_text", lambda generation: f"{generation.result().text}!")
    result = CliRunner().invoke(main, ["selftest"])
    assert result.exit_code == 1
    assert "4 of 4" in result.stdout
    assert "failed" in result.stderr.splitlines()[-1]


@pytest.mark.process
def test_a_model_that_does_not_exist_is_one_line() -> None:
    result = CliRunner().invoke(main, ["selftest", "--model", "no-such-model"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ")
