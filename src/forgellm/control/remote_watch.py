"""A watch over a daemon in another process, read straight from its connection. It ends with the daemon."""

import contextlib
import time

from forgellm.control import frames
from forgellm.control.frames import BadFrame, Failed
from forgellm.control.link import Link, LinkLost
from forgellm.supervisor.watch import Change, Wants, Watch, Watches

START_TIMEOUT_S = 10.0


class RemoteWatch(Watch):
    """As Watch. One reader; close() from any thread."""

    def __init__(self, link: Link, wants: Wants | None) -> None:
        """Follow from now on. Raises LinkLost, BadFrame, or the error that the daemon answered."""
        super().__init__(Watches(), wants)
        self._link = link
        deadline = time.monotonic() + START_TIMEOUT_S
        link.send(frames.Follow(), deadline)
        self._take_in(link.receive(frames.HAPPENED, deadline))

    def take(self, timeout_s: float) -> list[Change]:
        """As Watch.take(): also the changes that come together with the end."""
        if not self._unread and not self.has_ended:
            try:
                news = self._link.poll(frames.HAPPENED, time.monotonic() + timeout_s)
                if news is not None:
                    self._take_in(news)
            except (LinkLost, BadFrame):
                self.end()
        return super().take(0.0)

    def close(self) -> None:
        super().close()
        self._link.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it never got so far as to have one
            self._link.close()

    def _take_in(self, news: frames.Happened | Failed) -> None:
        if isinstance(news, Failed):
            raise news.error()
        self.put(frames.changes(news))
        self.is_lost = self.is_lost or news.is_lost
        if news.has_ended:
            self.end()
