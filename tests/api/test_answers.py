"""Several generations on their way to one client: nothing is lost, and nothing is held after the end."""

import threading
from typing import Any, cast

import pytest

from forgellm.api import answers
from forgellm.api.answers import Answers, stream
from forgellm.api.errors import ClientGone, Problem
from forgellm.api.gate import Gate
from forgellm.api.pool import Pool
from forgellm.errors import GenerationFailed, QueueFull, ShuttingDown, Unsupported
from forgellm.messages import Request, Usage
from forgellm.supervisor import Generation

REQUESTS = [Request(request_id=name, model="m", prompt="x") for name in ("a", "b")]
USAGE = Usage(prompt_tokens=1, completion_tokens=1)


class FakePool:
    """Hands out generations that the test fills itself."""

    def __init__(self, room: int = 9) -> None:
        self.made: list[Generation] = []
        self.aborted: list[str] = []
        self._room = room

    def submit(self, request: Request) -> Generation:
        if len(self.made) == self._room:
            raise QueueFull("full")
        self.made.append(Generation(request.request_id, request.model, self.aborted.append))
        return self.made[-1]


def begun(pool: FakePool, gate: Gate, **also: Any) -> Answers:
    return Answers(cast("Pool", pool), REQUESTS, gate, also.get("is_gone", lambda: False))


def say(generation: Generation, text: str, *, last: bool = False) -> None:
    generation.put((generation.request_id, text, (1,), None, "stop" if last else None, USAGE if last else None, None))


def test_pieces_of_all_generations_come_in_order_and_each_says_when_it_ended():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate)
    for generation in pool.made:
        say(generation, "1")
        say(generation, "2", last=True)
    pieces = [(index, token and token.text) for index, token in running.pieces()]
    for index in range(2):
        assert [text for where, text in pieces if where == index] == ["1", "2", None]
    assert running.usages == [USAGE, USAGE]
    assert gate.wait_empty(0)


def test_when_one_cannot_be_submitted_the_others_are_aborted():
    pool, gate = FakePool(room=1), Gate(1)
    with pytest.raises(QueueFull):
        begun(pool, gate)
    assert pool.aborted == ["a"]
    assert gate.wait_empty(0)


def test_a_client_that_left_ends_all_of_them():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate, is_gone=lambda: True)
    with pytest.raises(ClientGone):
        list(running.pieces())
    assert pool.aborted == ["a", "b"]


def test_a_server_that_stops_ends_all_of_them():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate)
    gate.close()
    with pytest.raises(ShuttingDown):
        list(running.pieces())
    assert pool.aborted == ["a", "b"]


def test_what_came_before_the_server_stops_is_delivered():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate)
    say(pool.made[0], "1")
    gate.close()
    batches = running.batches()
    assert [token and token.text for _, token in next(batches)] == ["1"]
    with pytest.raises(ShuttingDown):
        list(batches)
    running.close()


def test_answers_that_are_complete_are_sent_though_the_server_stops():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate)
    for generation in pool.made:
        say(generation, "1", last=True)
    gate.close()
    assert [token and token.text for _, token in running.pieces()] == ["1", None, "1", None]


def test_a_quiet_while_is_an_empty_batch(monkeypatch):
    monkeypatch.setattr(answers, "QUIET_S", 0.0)
    monkeypatch.setattr(answers, "POLL_S", 0.0)
    running = begun(FakePool(), Gate(1))
    assert next(running.batches()) == []
    running.close()


def test_tokens_before_a_failure_are_delivered():
    pool = FakePool()
    running = begun(pool, Gate(1))
    say(pool.made[0], "1")
    pool.made[0].fail(GenerationFailed("x"))
    batches = running.batches()
    assert [token and token.text for _, token in next(batches)] == ["1"]
    with pytest.raises(GenerationFailed):
        list(batches)
    running.close()


def test_an_error_of_a_worker_names_the_field_as_the_client_does():
    pool = FakePool()
    running = Answers(cast("Pool", pool), REQUESTS[:1], Gate(1), lambda: False, {"constraint": "guided_regex"})
    pool.made[0].fail(Unsupported("constraint: no", field="constraint"))
    with pytest.raises(Unsupported) as caught:
        list(running.pieces())
    assert (caught.value.field, caught.value.message) == ("guided_regex", "`guided_regex`: no")


def test_a_failure_after_the_first_byte_is_the_last_frame_and_its_words_are_safe():
    def frames():
        yield b"one"
        raise RuntimeError("secret path")

    seen: list[Problem] = []
    running = begun(FakePool(), Gate(1))
    response = stream(running, frames(), mimetype="text/x", failure=lambda problem: seen.append(problem) or b"failed")
    assert list(response.response) == [b"one", b"failed"]
    assert seen[0].code == "internal_error"
    assert "secret" not in seen[0].message
    response.close()


def test_a_failure_before_the_first_byte_is_raised_and_gives_the_place_back():
    def frames():
        raise GenerationFailed("x")
        yield b""

    gate = Gate(1)
    with pytest.raises(GenerationFailed):
        stream(begun(FakePool(), gate), frames(), mimetype="text/x", failure=lambda _problem: b"")
    assert gate.wait_empty(0)


def test_a_stream_that_says_nothing_is_kept_alive_by_pings(monkeypatch):
    monkeypatch.setattr(answers, "STATUS_WAIT_S", 0.0)
    running = begun(FakePool(), Gate(1))
    response = stream(running, iter([b"", b"", b"x"]), mimetype="t/x", failure=lambda _problem: b"", ping=b"!")
    assert list(response.response) == [b"!", b"!", b"x"]
    response.close()


def test_closing_is_for_any_thread_and_only_once():
    pool, gate = FakePool(), Gate(1)
    running = begun(pool, gate)
    threads = [threading.Thread(target=running.close)]
    threads[0].start()
    threads[0].join()
    running.close()
    assert pool.aborted == ["a", "b"]
    assert gate.wait_empty(0)
