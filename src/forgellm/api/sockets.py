"""Waits for the sockets of the HTTP server, in place of waitress's own loop. Knows no HTTP.

At each turn of its loop waitress asks every connection what it waits for, and each answer is a turn: 2,000 idle
connections cost milliseconds an answer. Here a connection is asked when something has happened to it.
"""

import selectors
import time
from collections import OrderedDict, deque

from waitress import wasyncore

GIVING_WAY_S = 0.01  # at one turn
_Waiting = tuple[selectors.BaseSelector, int]  # where it is registered, and for which events
_Event = tuple[selectors.SelectorKey, int]
_HANDLERS = ((selectors.EVENT_READ, wasyncore.read), (selectors.EVENT_WRITE, wasyncore.write))


class Sockets(dict[int, wasyncore.dispatcher]):
    """waitress's table of its sockets by descriptor, and two selectors that know what each of them waits for.

    One thread turns and changes it; any may note(). Channels with a true `gives_way` have the second selector, which
    the first one watches: at each turn they are dealt with after the others, and only for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self._first = selectors.DefaultSelector()
        self._second = selectors.DefaultSelector()
        self._first.register(self._second, selectors.EVENT_READ)
        self._waiting: dict[int, _Waiting] = {}  # by descriptor
        self._backlog = OrderedDict[int, _Event]()  # what the second selector told, not yet dealt with
        self._noted: deque[wasyncore.dispatcher] = deque()

    def __setitem__(self, descriptor: int, channel: wasyncore.dispatcher) -> None:
        super().__setitem__(descriptor, channel)
        self.note(channel)

    def __delitem__(self, descriptor: int) -> None:
        """Before it is closed: the next connection may get its number."""
        super().__delitem__(descriptor)
        self._forget(descriptor)

    def note(self, channel: wasyncore.dispatcher) -> None:
        """Ask it, at the next turn, what it waits for: that may have changed."""
        self._noted.append(channel)

    def turn(self, timeout_s: float) -> None:
        """Wait until something happens, at most `timeout_s`, and have it dealt with."""
        for _ in range(len(self._noted)):
            self._ask(self._noted.popleft())
        for key, events in self._first.select(0.0 if self._backlog else timeout_s):
            if key.fileobj is not self._second:
                self._deal_with(key, events)
        if not self._backlog:
            self._backlog.update((event[0].fd, event) for event in self._second.select(0.0))
        until = time.monotonic() + GIVING_WAY_S
        while self._backlog:
            self._deal_with(*self._backlog.popitem(last=False)[1])
            if time.monotonic() >= until:
                break

    def close(self) -> None:
        self._first.close()
        self._second.close()

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
        if not events:
            self.note(channel)  # once more: a thread may have written between the two questions
        selector = self._second if getattr(channel, "gives_way", False) else self._first
        if self._waiting.get(descriptor, (selector, 0)) != (selector, events):
            self._forget(descriptor)
            if events:
                selector.register(descriptor, events, channel)
                self._waiting[descriptor] = (selector, events)

    def _forget(self, descriptor: int) -> None:
        """Wait for nothing at it, nor deal with what was told of it: whatever holds still is told again."""
        self._backlog.pop(descriptor, None)
        selector, _ = self._waiting.pop(descriptor, (None, 0))
        if selector is not None:
            selector.unregister(descriptor)
