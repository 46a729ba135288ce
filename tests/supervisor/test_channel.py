"""The channel under the deaths it was made for."""

import os
import signal
import time
from multiprocessing.queues import Queue, SimpleQueue

import pytest

from forgellm.errors import ChannelUnsafe
from forgellm.messages import Abort, Bye, Command, Event, Hello
from forgellm.supervisor import channel as module
from forgellm.supervisor.channel import Channel, ChannelClosed, ProtocolError, self_test
from forgellm.supervisor.process import CONTEXT, describe_exit

pytestmark = pytest.mark.process


def _echo(down: "Queue[Command]", up: "SimpleQueue[Event]") -> None:
    down._writer.close()
    up._reader.close()
    up.put(Hello(os.getpid()))
    while True:
        command = down.get()
        if command == Abort("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if command == Abort("lie"):
            os.write(up._writer.fileno(), (8).to_bytes(4, "big") + b"no event")
        if command == Abort("brag"):
            os.write(up._writer.fileno(), (2**31 - 1).to_bytes(4, "big"))
        up.put(Bye())


class Peer:
    def __enter__(self) -> Channel:
        self.channel = Channel(CONTEXT)
        self.process = CONTEXT.Process(target=_echo, args=(self.channel.down, self.channel.up), daemon=True)
        self.process.start()
        self.channel.close_worker_ends()
        assert self.channel.receive() == Hello(self.process.pid or 0)
        return self.channel

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join(5)
        self.channel.close()
        self.process.close()


def test_commands_go_down_and_events_come_up() -> None:
    with Peer() as channel:
        channel.send(Abort("x"))
        assert channel.receive() == Bye()


def test_a_death_is_an_eof_and_sending_to_the_dead_neither_raises_nor_blocks() -> None:
    with Peer() as channel:
        channel.send(Abort("die"))
        started = time.monotonic()
        with pytest.raises(ChannelClosed):
            channel.receive()
        assert time.monotonic() - started < 5
        for _ in range(1000):
            channel.send(Abort("x" * 1000))


@pytest.mark.chaos
def test_chaos_034_what_is_no_event_is_a_protocol_error() -> None:
    with Peer() as channel:
        channel.send(Abort("lie"))
        with pytest.raises(ProtocolError):
            channel.receive()


@pytest.mark.chaos
def test_chaos_035_a_boastful_length_is_refused_without_the_memory_for_it() -> None:
    with Peer() as channel:
        channel.send(Abort("brag"))
        with pytest.raises(ChannelClosed, match="bad message length"):
            channel.receive()


@pytest.mark.chaos
def test_chaos_010_a_message_torn_by_sigkill_is_seen_as_the_end_within_a_second() -> None:
    assert self_test(CONTEXT) < 10


@pytest.mark.chaos
def test_chaos_094_a_python_whose_queues_keep_their_ends_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the closed ends, a reader of a killed worker never returns: better to refuse than to hang."""
    monkeypatch.setattr(module, "SELF_TEST_DEADLINE_S", 1.0)
    monkeypatch.setattr(Channel, "close_worker_ends", lambda self: None)
    with pytest.raises(ChannelUnsafe):
        self_test(CONTEXT)


def test_exit_codes_have_words_for_people() -> None:
    assert "out of memory" in describe_exit(-9, "")
    assert "last log line: boom" in describe_exit(1, "first\nboom")
    assert "signal 4" in describe_exit(-4, "")


def test_a_crash_is_told_with_its_place_and_what_the_worker_said_before_it() -> None:
    crash = """Fatal Python error: Segmentation fault

Thread 0x1 (most recent call first):
  File "/x/a.py", line 1 in wait

Current thread 0x2 (most recent call first):
  File "/x/b.py", line 2 in step
  File "/x/c.py", line 3 in run

Extension modules: numpy (total: 1)"""
    told = "the worker crashed (SIGSEGV) [at b.py, line 2 in step"
    assert describe_exit(-11, f"loading\n{crash}") == f"{told}; last log line: loading]"
    assert describe_exit(-11, crash) == f"{told}]"
