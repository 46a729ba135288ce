"""An inbox that is waited at for next to no time, again and again."""

import queue
import subprocess
import sys

import pytest

from forgellm.inbox import Inbox

MANY_SHORT_WAITS = """
import faulthandler, queue
from forgellm.inbox import Inbox
faulthandler.dump_traceback_later(30, exit=True)
inbox = Inbox()
for number in range(5000):
    inbox.put(number)
    assert inbox.take() == number
    try:
        inbox.take(1e-6)
    except queue.Empty:
        pass
"""


@pytest.mark.process
def test_no_wait_is_longer_than_it_may_be() -> None:
    """In a process of its own: with queue.SimpleQueue alone it never came back, and held its process."""
    ended = subprocess.run([sys.executable, "-c", MANY_SHORT_WAITS], check=False, timeout=60, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_items_come_in_their_order_and_an_empty_inbox_says_so() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.put("a")
    inbox.put("b")
    assert [inbox.take(), inbox.take(1.0)] == ["a", "b"]
    with pytest.raises(queue.Empty):
        inbox.take()
