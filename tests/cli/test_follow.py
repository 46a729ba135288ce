"""forgellm logs and forgellm events, without a daemon: the status and the files are made up."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from forgellm.cli.follow import event_text, log_lines
from forgellm.errors import ModelNotLoaded, Unavailable


def status(folder: Path, **workers: int) -> dict[str, Any]:
    """Of one model `m` whose workers have these lives."""
    listed = [{"name": f"m#{name[1:]}", "life": life} for name, life in workers.items()]
    return {"log_stem": str(folder / "worker-1-"), "models": [{"model_name": "m", "workers": listed}]}


def write(folder: Path, life: int, text: str) -> None:
    with (folder / f"worker-1-{life}.log").open("a", encoding="utf-8") as file:
        file.write(text)


def test_the_last_lines_of_every_worker_are_printed(tmp_path: Path) -> None:
    write(tmp_path, 1, "a\nb\nc\n")
    write(tmp_path, 2, "d\n")
    found = log_lines(lambda: status(tmp_path, w1=1, w2=2), "m", 2, follow=False)
    assert list(found) == [("m#1", 1, "b"), ("m#1", 1, "c"), ("m#2", 2, "d")]


def test_following_goes_on_with_the_next_life_and_with_a_file_that_was_cut(tmp_path: Path) -> None:
    write(tmp_path, 1, "old\n")
    lives = [1]

    def add() -> Iterator[str]:
        write(tmp_path, 1, "new\nhal")
        yield "new"
        write(tmp_path, 1, "f\n")
        yield "half"
        (tmp_path / "worker-1-1.log").write_text("c\n", "utf-8")
        yield "c"
        lives[0] = 2
        write(tmp_path, 2, "next life\n")
        yield "next life"

    lines = log_lines(lambda: status(tmp_path, w1=lives[0]), "m", 10, follow=True)
    assert next(lines) == ("m#1", 1, "old")
    for wanted in add():
        assert next(lines)[2] == wanted


def test_a_model_that_is_not_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoaded, match="forgellm ps"):
        list(log_lines(lambda: status(tmp_path), "m", 10, follow=False))


def test_a_daemon_on_another_machine_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="another machine"):
        list(islice(log_lines(lambda: status(tmp_path, w1=7), "m", 10, follow=True), 1))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("snapshot", {"models": []}, "now: no model is loaded"),
        ("snapshot", {"models": [{"model_name": "m", "state": "ready"}]}, "now: m is ready"),
        ("end", {"reason": "the server is stopping"}, "end: the server is stopping"),
        (
            "state",
            {"time": 0, "worker": "m#1", "life": 3, "from": "loading", "to": "ready", "reason": "load"},
            "m#1 (life 3): loading -> ready (load)",
        ),
        ("progress", {"time": 0, "worker": "m#1", "progress": 0.5, "stage": "warming up"}, "m#1: 50% warming up"),
        (
            "death",
            {"time": 0, "worker": "m#1", "life": 3, "cause": "hang", "reason": "no step"},
            "m#1 (life 3) died: hang: no step",
        ),
        ("eviction", {"time": 0, "model": "m", "reason": "idle for 5 s"}, "m is evicted: idle for 5 s"),
    ],
)
def test_an_event_is_a_line(name: str, value: dict[str, Any], text: str) -> None:
    assert event_text(name, value).endswith(text)
