"""The lock around a piece of the cache."""

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


def test_a_lock_is_free_again_after_an_error_inside(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "x.lock"
    with pytest.raises(ZeroDivisionError), exclusive(path, 0.0):
        _ = 1 / 0
    with exclusive(path, 0.0):
        pass
