"""The lock around a piece of the cache."""

from functools import partial
from pathlib import Path

import pytest

from forgellm.catalog.lock import exclusive
from forgellm.errors import Unavailable


def test_a_lock_that_is_held_ends_in_a_clear_error_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.lock"
    with exclusive(path, 1.0), pytest.raises(Unavailable, match=r"x\.lock") as caught, exclusive(path, 0.0):
        pass
    assert caught.value.retry_after_s
    with exclusive(path, 0.0):
        pass


def test_who_waits_for_a_lock_says_so(tmp_path: Path) -> None:
    """A worker that loads must show progress: one that waits for another's download is not stuck."""
    path, words = tmp_path / "x.lock", list[str]()
    first, second = (exclusive(path, 0.1, partial(words.append, name)) for name in ("first", "second"))
    with first, pytest.raises(Unavailable), second:
        pass
    assert words == ["second"]


def test_a_lock_is_free_again_after_an_error_inside(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "x.lock"
    with pytest.raises(ZeroDivisionError), exclusive(path, 0.0):
        _ = 1 / 0
    with exclusive(path, 0.0):
        pass
