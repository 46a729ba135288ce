"""A generation that runs in a daemon, read straight from its connection by whoever iterates over it.

No thread stands between: the socket's buffer is the back-pressure, and its end is the daemon's. A connection that is
lost is made again, and the request goes on after the tokens that have come, for as long as the caller allows.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, Self

from forgellm.control import frames
from forgellm.control.frames import BadFrame, Failed, News
from forgellm.control.link import Link, LinkLost
from forgellm.errors import ForgeLLMError, ShuttingDown, SupervisorUnavailable, Unavailable, VersionSkew
from forgellm.messages import Request, Usage
from forgellm.supervisor import Generation, Token

SEND_TIMEOUT_S = 30.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Dial(Protocol):
    """Connects to a daemon, which it may start if it is allowed to."""

    def __call__(self, *, may_start: bool) -> Link: ...


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
            self._resume(str(error))
        except ForgeLLMError as error:
            self.fail(error)
        return self

    # Reading ---------------------------------------------------------------------------------------------------------

    def take(self, timeout_s: float) -> list[Token]:
        """As Generation.take(). A wait for a daemon that restarts may take longer than `timeout_s`."""
        if not self._tokens and not self.has_ended:
            self._read(time.monotonic() + timeout_s)
        return super().take(0.0)

    def __next__(self) -> Token:
        while not self._tokens and not self.has_ended:
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
            self._end_closed()
            return
        try:
            news = link.poll(frames.NEWS, deadline)
            if news is not None:
                self._take_in(news)
        except (LinkLost, BadFrame) as error:
            self._resume(str(error))

    def _take_in(self, news: News | Failed) -> None:
        if isinstance(news, Failed):
            error = news.error()
            if isinstance(error, ShuttingDown) and not self._is_new():  # somebody stopped it, and may start it again
                self._resume(error.message, may_start=False)
            else:
                self._finish(error)
            return
        if news.prefill is not None:
            self.prefill = news.prefill
        for chunk in frames.chunks(news):
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
        request = replace(self._request, request_id=self.wire_id, resume=tuple(self._received))
        link.send(frames.Submit(request), time.monotonic() + SEND_TIMEOUT_S)

    def _resume(self, why: str, *, may_start: bool = True) -> None:
        """Go on with the next daemon, or fail when the time for that has passed."""
        self._drop_link()
        deadline = time.monotonic() + self._resume_timeout_s
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                self._submit(may_start=may_start)
                return
            except LinkLost as error:
                self._drop_link()
                why = str(error)
            except VersionSkew as error:
                self._finish(error)
                return
            except Unavailable as error:
                why = error.message
            except ForgeLLMError as error:
                self._finish(error)
                return
            if time.monotonic() + pause_s > deadline:
                lost = f"the daemon was lost, and did not come back within {self._resume_timeout_s:g} s: {why}"
                self._finish(SupervisorUnavailable(lost, retry_after_s=1.0))
                return
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._end_closed()

    def _is_new(self) -> bool:
        """Whether nothing of the answer has come: then the caller is better served with the error at once."""
        return self._runs <= 1 and not self._received

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
