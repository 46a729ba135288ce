"""What a log line looks like, to people and to programs."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from forgellm import logs
from forgellm.config import Settings


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_json_line_is_one_object_with_the_data_of_the_line() -> None:
    stream = io.StringIO()
    logs.set_up(Settings(log_format="json"), stream)
    logging.getLogger("forgellm.x").warning(
        "it %s", "broke\ntwice", extra={"data": {"request_id": "r1", "status": 500}}
    )
    logging.getLogger("forgellm.x").debug("below the level")
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning",
        "logger": "forgellm.x",
        "message": "it broke\ntwice",
        "request_id": "r1",
        "status": 500,
    }


@pytest.mark.usefixtures("_logging_as_it_was")
def test_an_exception_is_in_the_object() -> None:
    stream = io.StringIO()
    logs.set_up(Settings(log_format="json"), stream)
    try:
        raise ValueError("no good")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    assert "ValueError: no good" in json.loads(stream.getvalue())["exception"]


@pytest.mark.usefixtures("_logging_as_it_was")
def test_a_line_for_people_stays_one_line() -> None:
    """Else whoever can get a word into a message can forge a line, or colour the terminal."""
    stream = io.StringIO()
    logs.set_up(Settings(), stream)
    logging.getLogger("x").info("a path: %s", "/x\n2026-01-01 INFO forged \x1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO x: a path: /x\\n2026-01-01 INFO forged \\x1b[31m")
