"""What a daemon remembers of what was loaded, and when it does not load it again."""

import json
import logging
from contextlib import suppress
from pathlib import Path

import pytest

from forgellm.errors import ConfigError
from forgellm.supervisor.journal import Journal, Record, Remembered, Restore, decide

TINY = Remembered(model="tiny", replicas=2, pin=True)
NOW = 1_000_000.0


def test_after_a_clean_end_nothing_is_restored() -> None:
    assert decide(Record(is_clean=True, models=(TINY,)), NOW)[0] == Restore()


def test_after_a_crash_what_was_loaded_is_restored() -> None:
    restore, record = decide(Record(models=(TINY,)), NOW)
    assert restore.models == (TINY,)
    assert "died with tiny loaded" in restore.reason
    assert record.dirty_ends == (NOW,)


@pytest.mark.chaos
def test_chaos_090_after_two_crashes_in_fifteen_minutes_nothing_is_loaded_and_it_says_why() -> None:
    restore, record = decide(Record(models=(TINY,), dirty_ends=(NOW - 899,)), NOW)
    assert (restore.models, restore.is_held_back) == ((), True)
    assert "2 times in 15 minutes, with tiny loaded" in restore.reason
    assert decide(Record(models=(TINY,), dirty_ends=(NOW - 901,)), NOW)[0].models == (TINY,)
    assert record.models == ()


def test_chaos_080_a_clock_that_was_set_back_does_not_count_ends_of_the_future() -> None:
    assert decide(Record(models=(TINY,), dirty_ends=(NOW + 60,)), NOW)[0].models == (TINY,)


def test_an_explicit_load_after_a_held_back_start_clears_the_history(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    for at in (0.0, 1.0):
        journal = Journal(path)
        journal.begin(NOW + at)
        journal.note((TINY,))
    held_back = Journal(path)
    assert held_back.begin(NOW + 2).is_held_back
    held_back.note((TINY,))
    assert Journal(path).begin(NOW + 3).models == (TINY,)


def test_starts_that_were_refused_are_no_crashes(tmp_path: Path) -> None:
    """A wrong name to preload, corrected at the third try: that try loads what it is told to."""
    path = tmp_path / "journal.json"
    Journal(path).begin(NOW - 60)
    for at in (0.0, 1.0, 2.0):
        with suppress(ConfigError), Journal(path).starting(NOW + at) as restore:
            assert not restore.is_held_back
            raise ConfigError("there is no such model")
    Journal(path).begin(NOW + 3)
    assert Journal(path).begin(NOW + 4).is_held_back


def test_it_survives_its_process_and_knows_a_clean_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.json"
    journal = Journal(path)
    assert journal.begin(NOW) == Restore()
    journal.note((TINY,))
    assert Journal(path).begin(NOW + 1).models == (TINY,)
    journal.end()
    assert Journal(path).begin(NOW + 2) == Restore()
    assert [file.name for file in path.parent.iterdir()] == ["journal.json"]


@pytest.mark.chaos
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', b"\xff\x00"])
def test_chaos_077_an_unreadable_journal_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content)
    assert Journal(path).begin(NOW) == Restore()
    assert path.with_suffix(".unreadable").read_bytes() == content
    assert json.loads(path.read_text())["version"] == 1


def test_chaos_076_a_disk_that_takes_nothing_is_told_once_and_does_not_stop_the_daemon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    journal = Journal(tmp_path / "file" / "journal.json")
    with caplog.at_level(logging.WARNING):
        journal.begin(NOW)
        journal.note((TINY,))
        journal.end()
    assert sum("cannot be written" in record.message for record in caplog.records) == 1
