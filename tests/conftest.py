"""What every test can rely on: a clean environment, and a check that nothing is left behind."""

import gc
import os
from collections.abc import Iterator

import platformdirs
import pytest

from leaks import children, held, leftovers

pytest.register_assert_rewrite("invariants")  # what it asserts is then told with its values


def pytest_collection_finish() -> None:
    """What pytest has gathered stays: let no garbage collection look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_of_other_tests() -> None:
    """A garbage collection stops every thread of this process, and so a supervisor. After thousands of examples of the
    pool's machines one took 1.4 s, and the answers of another module's test were late by as much."""
    gc.collect()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test must leave no child process, no thread and no descriptor that it did not find."""
    before = held()
    yield
    assert leftovers(before) == []


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """The whole session must end with no child process, whatever its tests did to the workers."""
    before = (children(),)
    yield
    assert leftovers(before, lambda: (children(),)) == []


@pytest.fixture(scope="session", autouse=True)
def _settings_come_from_the_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """FORGELLM_* variables and API keys of whoever runs the tests must not reach them."""
    nobodys = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FORGELLM_")]:
            patch.delenv(name)
        patch.setattr(platformdirs, "user_config_dir", lambda *_: str(nobodys))
        patch.setenv("XDG_CONFIG_HOME", str(nobodys))  # of child processes
        yield
