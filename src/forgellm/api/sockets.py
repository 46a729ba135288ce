"""Waits for the sockets of the HTTP server, in place of waitress's own loop. Knows no HTTP.

At each turn of its loop waitress asks every connection what it waits for, and each answer is a turn: 2,000 idle
connections cost milliseconds an answer. Here a connection is asked when something has happened to it.
"""

import selectors
import time
from collections import deque

from waitress import wasyncore

GIVING_WAY_S = 0.01  # at one turn
_HANDLERS = ((selectors.EVENT_READ, wasyncore.read), (selectors.EVENT_WRITE, wasyncore.write))


class Sockets(dict[int, wasyncore.dispatcher]):
    """waitress's table of its sockets by descriptor, and the selector that knows what each of them waits for.

    One thread turns and changes it; any may note(). Channels with a true `gives_way` are dealt with after the others,
    and only for a moment at each turn: the others never stand in line behind thousands of them."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[int, int] = {}  # by descriptor: what the selector looks out for
        self._noted: deque[wasyncore.dispatcher] = deque()

    def __setitem__(self, descriptor: int, channel: wasyncore.dispatcher) -> None:
        super().__setitem__(descriptor, channel)
        self.note(channel)

    def __delitem__(self, descriptor: int) -> None:
        """Before it is closed: the next connection may get its number."""
        super().__delitem__(descriptor)
        if self._waiting.pop(descriptor, 0):
            self._selector.unregister(descriptor)

    def note(self, channel: wasyncore.dispatcher) -> None:
        """Ask it, at the next turn, what it waits for: that may have changed."""
        self._noted.append(channel)

    def turn(self, timeout_s: float) -> None:
        """Wait until something happens, at most `timeout_s`, and have it dealt with."""
        for _ in range(len(self._noted)):
            self._ask(self._noted.popleft())
        giving_way: list[tuple[selectors.SelectorKey, int]] = []
        for key, events in self._selector.select(timeout_s):
            if getattr(key.data, "gives_way", False):
                giving_way.append((key, events))
            else:
                self._deal_with(key, events)
        until = time.monotonic() + GIVING_WAY_S
        for key, events in giving_way:
            self._deal_with(key, events)
            if time.monotonic() >= until:
                break  # the selector tells of the rest again; epoll and kqueue, of the oldest first

    def close(self) -> None:
        self._selector.close()

    def _deal_with(self, key: selectors.SelectorKey, events: int) -> None:
        channel = key.data
        for event, handle in _HANDLERS:
            if events & event and self.get(key.fd) is channel:  # else it was closed in this turn
                handle(channel)
        self.note(channel)

    def _ask(self, channel: wasyncore.dispatcher) -> None:
        descriptor = channel._fileno
        if descriptor not in self or self[descriptor] is not channel:
            return
        events = selectors.EVENT_READ if channel.readable() else 0
        if channel.writable():
            events |= selectors.EVENT_WRITE
        before = self._waiting.get(descriptor, 0)
        self._waiting[descriptor] = events
        if not events:
            self.note(channel)  # once more: a thread may have written between the two questions
        if events and before:
            if events != before:
                self._selector.modify(descriptor, events, channel)
        elif events:
            self._selector.register(descriptor, events, channel)
        elif before:
            self._selector.unregister(descriptor)
