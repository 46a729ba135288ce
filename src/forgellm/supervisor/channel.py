"""One pair of multiprocessing queues per worker life, arranged so that SIGKILL at any instant is seen as an EOF.

Both sides close the ends they do not use; without that, a reader blocked on a torn message never returns. Never shared
between workers, never used for a second life. Must not interpret what it carries.

The names marked private, which typeshed does not list, are the ones concurrent.futures uses; `self_test` turns a
change of CPython into a refusal.
"""

import sys
import threading
import time
from multiprocessing import reduction
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue, SimpleQueue

from forgellm.errors import ChannelUnsafe
from forgellm.messages import Bye, Command, Event
from forgellm.worker.selftest import die_mid_message

MAX_EVENT_BYTES = 64 << 20
SELF_TEST_DEADLINE_S = 20.0


class ChannelClosed(Exception):
    """The worker's end is gone: it died, or closed its descriptors."""


class ProtocolError(Exception):
    """Something came up that is not an event; the worker cannot be trusted any more."""


class Channel:
    """down: `ctx.Queue`, whose feeder thread means that send() never blocks. up: `ctx.SimpleQueue`, whose put() is
    synchronous, so that a worker's last words arrive, and whose full pipe holds a flooding worker back."""

    def __init__(self, context: SpawnContext) -> None:
        self.down: Queue[Command] = context.Queue()
        self.up: SimpleQueue[Event] = context.SimpleQueue()
        self.down.cancel_join_thread()  # a dead worker's unread commands must not hold up our exit
        self.down._ignore_epipe = True  # type: ignore[attr-defined]  # private: a put() to a dead worker is no error of ours

    def close_worker_ends(self) -> None:
        """Right after start(): drop our copies of what the worker holds, so that its death is an EOF here."""
        self.down._reader.close()  # type: ignore[attr-defined]  # private
        self.up._writer.close()  # type: ignore[attr-defined]  # private

    def send(self, command: Command) -> None:
        """Queue a command. Never blocks; to a dead worker it goes nowhere."""
        self.down.put(command)

    def receive(self) -> Event:
        """The next event, blocking. Raises ChannelClosed at the end, ProtocolError on anything that is no event."""
        try:
            data = self.up._reader.recv_bytes(MAX_EVENT_BYTES)  # type: ignore[attr-defined]  # private
        except (EOFError, OSError) as error:
            raise ChannelClosed(str(error)) from error
        try:
            event: Event = reduction.ForkingPickler.loads(data)
        except Exception as error:  # unpickling can raise anything; all of it means the same
            raise ProtocolError(f"{type(error).__name__}: {error}") from error
        return event

    def close(self) -> None:
        """After the worker is gone: end the feeder thread and free every descriptor."""
        self.down.close()
        feeder = self.down._thread  # type: ignore[attr-defined]  # private
        if feeder is not None:
            feeder.join(1.0)
        self.down._writer.close()  # type: ignore[attr-defined]  # private
        self.up._reader.close()  # type: ignore[attr-defined]  # private


def self_test(context: SpawnContext) -> float:
    """Spawn a worker that is killed in mid-message and expect the EOF. Returns the seconds it took.

    Raises ChannelUnsafe if this Python's multiprocessing does not deliver it: better no server than one that hangs.
    """
    started = time.monotonic()
    events: list[Event] = []
    channel = Channel(context)
    process = context.Process(target=die_mid_message, args=(channel.down, channel.up), name="forgellm-worker-selftest")
    process.start()
    # What must not happen is a read that never returns; closing the last writing end is what would end it.
    alarm = threading.Timer(SELF_TEST_DEADLINE_S, channel.up._writer.close)  # type: ignore[attr-defined]  # private
    alarm.start()
    try:
        channel.close_worker_ends()
        events.append(channel.receive())
        events.append(channel.receive())
        raise ChannelUnsafe(f"a torn message was read as {events[1]!r}")
    except ChannelClosed as error:
        if time.monotonic() - started >= SELF_TEST_DEADLINE_S:
            unsafe = "the end of a killed worker's channel is not seen: a dead worker would hang its clients"
            raise ChannelUnsafe(f"{unsafe} (Python {sys.version.split()[0]})") from error
        if events != [Bye()]:
            raise ChannelUnsafe(f"the worker of the channel's self-test said {events}, not Bye()") from error
        return time.monotonic() - started
    except AttributeError as error:
        raise ChannelUnsafe(f"this Python's multiprocessing lacks what the channel needs: {error}") from error
    finally:
        alarm.cancel()
        process.kill()
        process.join(SELF_TEST_DEADLINE_S)
        channel.close()
        alarm.join()
