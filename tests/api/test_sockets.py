"""The table of sockets asks each what it waits for when that may have changed, and lets some of them go first."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from waitress import wasyncore

from forgellm.api import sockets
from forgellm.api.sockets import Sockets


class Channel(wasyncore.dispatcher):
    """One end of a pair of sockets; remembers in `log` what was asked of it, and what it heard."""

    def __init__(self, table: Sockets, log: list[str], name: str) -> None:
        mine, self.other = socket.socketpair()
        self.log = log
        self.name = name
        self.wants_to_read = True
        self.gives_way = False
        super().__init__(mine, table)

    def readable(self) -> bool:
        self.log.append(f"{self.name}?")
        return self.wants_to_read

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self.log.append(self.name)
        self.socket.recv(10)

    def hear(self) -> None:
        self.other.send(b"x")


@contextmanager
def channels(names: str) -> Iterator[tuple[Sockets, list[str], list[Channel]]]:
    """A table of them, and their log."""
    table, log = Sockets(), list[str]()
    with ExitStack() as ends:
        found = [Channel(table, log, name) for name in names]
        for each in found:
            ends.callback(each.other.close)
        ends.callback(table.close)
        ends.callback(wasyncore.close_all, table)
        table.turn(0)
        log.clear()
        yield table, log, found


def test_only_the_socket_that_something_happened_to_is_asked_again():
    with channels("abc") as (table, log, (_, b, _)):
        table.turn(0)
        assert log == []
        b.hear()
        table.turn(0)
        table.turn(0)
        assert log == ["b", "b?"]


def test_a_socket_that_is_noted_is_asked_and_waits_for_what_it_says_now():
    with channels("a") as (table, log, (a,)):
        a.wants_to_read = False
        table.note(a)
        a.hear()
        table.turn(0)
        assert log == ["a?"]
        a.wants_to_read = True
        table.turn(0)
        assert log == ["a?", "a?", "a"]


def test_a_socket_that_was_closed_in_this_turn_hears_no_more_of_it():
    with channels("ab") as (table, _, (a, b)):
        a.handle_read_event = b.close
        b.handle_read_event = a.close
        a.hear()
        b.hear()
        table.turn(0)
        assert len(table) == 1


def test_the_next_socket_may_have_the_number_of_a_closed_one():
    with channels("a") as (table, log, (a,)):
        a.close()
        later = Channel(table, log, "l")
        with later.other:
            later.hear()
            table.turn(0)
            assert log == ["l?", "l"]


def test_some_give_way_to_the_others_and_all_have_their_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sockets, "GIVING_WAY_S", 0.0)
    with channels("abcd") as (table, log, found):
        for each in found:
            each.gives_way = each.name in "abc"
            table.note(each)
            each.hear()
        for _ in range(3):
            table.turn(0)
        assert [each for each in log if "?" not in each] == ["d", "a", "b", "c"]


def test_what_changes_its_mind_meanwhile_is_not_read_twice(monkeypatch: pytest.MonkeyPatch):
    """`b` was told of, and has its turn before those that it gave way with; one more read would find nothing."""
    monkeypatch.setattr(sockets, "GIVING_WAY_S", 0.0)
    with channels("ab") as (table, log, found):
        for each in found:
            each.gives_way = True
            table.note(each)
            each.hear()
        table.turn(0)
        assert log[-1] == "a"
        found[1].gives_way = False
        table.note(found[1])
        for _ in range(3):
            table.turn(0)
        assert log.count("b") == 1


def test_a_channel_that_waits_for_nothing_hears_nothing():
    with channels("a") as (table, log, (a,)):
        a.hear()
        a.wants_to_read = False
        table.note(a)
        for _ in range(3):
            table.turn(0)
        assert "a" not in log
