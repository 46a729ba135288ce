"""A generation that runs in a daemon, read straight from its connection by whoever iterates over it.

No thread stands between: the socket's buffer is the back-pressure, and its end is the daemon's. A connection that is
lost is made again, and the request goes on after the tokens that have come, for as long as the caller allows.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

from forgellm.control import frames
from forgellm.control.frames import BadFrame, Failed, News
from forgellm.control.link import Link, LinkLost
from forgellm.errors import ForgeLLMError, ShuttingDown, SupervisorUnavailable, Unavailable, VersionSkew
from forgellm.messages import Request, Usage
from forgellm.supervisor import Generation, Token

SEND_TIMEOUT_S = 30.0
SILENCE_S = 4 * frames.PING_S  # then the daemon counts as lost: it is stopped, or its machine is gone
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Dial(Protocol):
    """Connects to a daemon, which it may start if it is allowed to."""

    def __call__(self, *, may_start: bool) -> Link: ...


@dataclass(slots=True)
class _Lost:
    """A daemon that is gone: why, when the next one is looked for, and until when. Monotonic instants."""

    until: float
    next_try: float
    pause_s: float = FIRST_PAUSE_S
    why: str = ""
    may_start: bool = True


class RemoteGeneration(Generation):
    """As Generation; open() it first. `request` has its seed already, so that every run of it says the same.

    `dial(may_start=…)` connects to the daemon. One reader; close() from any thread."""

    def __init__(self, request: Request, dial: Dial, abort: Callable[[str], None], resume_timeout_s: float) -> None:
        super().__init__(request.request_id, request.model, abort)
        self._request = request
        self._dial = dial
        self._resume_timeout_s = resume_timeout_s
        self._received: list[int] = list(request.resume)
        self._runs = 0
        self._lost: _Lost | None = None
        self._heard_at = self._read_at = time.monotonic()
        self._link: Link | None = None
        self._stop = threading.Event()
        self._switch = threading.Lock()  # between close() and a link that is just made

    @property
    def wire_id(self) -> str:
        """Its id in the daemon: another one for each run, for the last run may not have ended there yet."""
        return self.request_id if self._runs <= 1 else f"{self.request_id}.{self._runs}"

    def open(self) -> Self:
        """Submit it. Raises nothing: what goes wrong is raised by whoever reads."""
        try:
            self._submit(may_start=True)
        except LinkLost as error:
            self._lose(str(error))
        except ForgeLLMError as error:
            self.fail(error)
        return self

    # Reading ---------------------------------------------------------------------------------------------------------

    def take(self, timeout_s: float) -> list[Token]:
        """As Generation.take(); [] also while a daemon that was lost is waited for."""
        if not self._chunks and not self.has_ended:
            self._read(time.monotonic() + timeout_s)
        return super().take(0.0)

    def __next__(self) -> Token:
        while not self._chunks and not self.has_ended:
            self._read(None)
        return super().__next__()

    def close(self) -> None:
        """Abort it if it still runs: the daemon sees the end of the connection. Idempotent."""
        self._stop.set()
        with self._switch:
            link, self._link = self._link, None
        if link is not None:
            link.close()
        self._closed = True

    # Its connection --------------------------------------------------------------------------------------------------

    def _read(self, deadline: float | None) -> None:
        """Put what comes before the deadline; makes a lost connection again."""
        link = self._link
        if link is None:
            self._come_back(deadline)
            return
        now = time.monotonic()
        if now - self._read_at > frames.PING_S:  # nobody has listened for a while: that is no silence of the daemon's
            self._heard_at = now
        silence = self._heard_at + SILENCE_S
        try:
            news = link.poll(frames.NEWS, silence if deadline is None else min(silence, deadline))
            self._read_at = time.monotonic()
            if news is not None:
                self._heard_at = self._read_at
                self._take_in(news)
            elif self._read_at >= silence:
                self._lose(f"{link.name} has said nothing for {SILENCE_S:g} s")
        except (LinkLost, BadFrame) as error:
            self._lose(str(error))

    def _take_in(self, news: News | Failed) -> None:
        if isinstance(news, Failed):
            error = news.error()
            if isinstance(error, ShuttingDown) and (self._lost or self._received):
                self._lose(error.message, may_start=False)  # somebody stopped it, and may start it again
            else:
                self._finish(error)
            return
        if news.prefill is not None:
            self.prefill = news.prefill
        for chunk in frames.chunks(news):
            self._lost = None
            self._received.extend(chunk[2])
            self.put(chunk)
        if self.has_ended:
            self._drop_link()

    def _submit(self, *, may_start: bool) -> None:
        link = self._dial(may_start=may_start)
        self._runs += 1
        with self._switch:
            if self._stop.is_set():
                link.close()
                return
            self._link = link
        self._heard_at = self._read_at = time.monotonic()
        request = replace(self._request, request_id=self.wire_id, resume=tuple(self._received))
        link.send(frames.Submit(request), time.monotonic() + SEND_TIMEOUT_S)

    def _lose(self, why: str, *, may_start: bool = True) -> None:
        """The connection is gone: from now on the next daemon is looked for, until tokens come from it."""
        self._drop_link()
        now = time.monotonic()
        if self._lost is None:
            self._lost = _Lost(until=now + self._resume_timeout_s, next_try=now)
        self._lost.why, self._lost.may_start = why, may_start
        if now > self._lost.until:
            self._give_up(self._lost)

    def _come_back(self, deadline: float | None) -> None:
        """Wait for the next try, at most until `deadline`, and make it when it is due."""
        lost = self._lost
        if lost is not None:
            until = lost.next_try if deadline is None else min(lost.next_try, deadline)
            self._stop.wait(max(0.0, until - time.monotonic()))
        if lost is None or self._stop.is_set():
            self._end_closed()
        elif time.monotonic() >= lost.next_try:
            self._try(lost)

    def _try(self, lost: "_Lost") -> None:
        lost.next_try = time.monotonic() + lost.pause_s
        lost.pause_s = min(2 * lost.pause_s, LONGEST_PAUSE_S)
        try:
            self._submit(may_start=lost.may_start)
            return
        except LinkLost as error:
            self._drop_link()
            lost.why = str(error)
        except VersionSkew as error:
            self._finish(error)
        except Unavailable as error:
            lost.why = error.message
        except ForgeLLMError as error:
            self._finish(error)
        if not self.has_ended and lost.next_try > lost.until:
            self._give_up(lost)

    def _give_up(self, lost: "_Lost") -> None:
        waited = f"the daemon was lost, and none went on within {self._resume_timeout_s:g} s"
        self._finish(SupervisorUnavailable(f"{waited}: {lost.why}"))

    def _end_closed(self) -> None:
        """Closed by us: whoever still reads gets an end, as from a worker that was told to abort."""
        if not self.has_ended:
            so_far = Usage(prompt_tokens=0, completion_tokens=len(self._received))
            self.put((self.request_id, "", (), None, "abort", so_far, None))

    def _finish(self, error: ForgeLLMError) -> None:
        self._drop_link()
        self.fail(error)

    def _drop_link(self) -> None:
        with self._switch:
            link, self._link = self._link, None
        if link is not None:
            link.close()
