"""The control server against good clients and bad peers; the pool behind it is a fake."""

import os
import pickle
import socket
import subprocess
import sys
import threading
import time

import msgspec
import pytest
from control_parts import FakePool, served

from bad_peers import bad_peers
from broken_models import Evil
from forgellm import ModelManager
from forgellm.control import frames, handshake, remote, server
from forgellm.control.frames import Failed, Hello
from forgellm.control.link import Link, LinkLost
from forgellm.errors import (
    BY_CODE,
    InsufficientMemory,
    InvalidRequest,
    ShuttingDown,
    SupervisorUnavailable,
    Unavailable,
    VersionSkew,
)
from forgellm.messages import Request, Usage
from forgellm.states import WorkerState
from forgellm.supervisor.effects import Announce, Died, Evicted, Progressed
from waiting import wait_until

SOON_S = 5.0


def client(place) -> ModelManager:
    return ModelManager(connect=str(place.address), resume_timeout_s=0.2)


def soon() -> float:
    return time.monotonic() + SOON_S


def last_word(sock: socket.socket) -> Failed | None:
    """What the server said before it closed the connection; None if nothing."""
    try:
        found = Link(sock, "the server").receive(frames.CHALLENGE, soon())
    except LinkLost:
        return None
    assert isinstance(found, Failed)
    return found


def test_a_call_is_answered_and_an_error_is_the_same_on_the_other_side(tmp_path, no_leaks):
    with served(tmp_path) as place:
        assert client(place).status() == place.pool.status()
        assert client(place).about().pid == os.getpid()
        assert client(place).load("m", pin=True, wait=False).loading_time_s == 0.5
        assert place.pool.loads == [{"model": "m", "wait": False, "timeout_s": None, "pin": True}]
        place.pool.error = InsufficientMemory("no room", retry_after_s=7.5)
        with pytest.raises(InsufficientMemory, match="no room") as caught:
            client(place).status()
        assert caught.value.retry_after_s == 7.5


def test_options_of_a_wrong_type_are_refused_by_name(tmp_path):
    with served(tmp_path) as place, pytest.raises(InvalidRequest, match="replicas"):
        client(place).load("m", replicas="many")
    assert place.pool.loads == []


def test_a_bug_behind_the_socket_costs_one_call_and_shows_nothing(tmp_path, caplog):
    with served(tmp_path) as place:
        place.pool.status = lambda: {}["a secret"]
        with pytest.raises(BY_CODE["internal_error"]) as caught:
            client(place).status()
        assert "secret" not in caught.value.message
        assert "KeyError" in caught.value.message
        assert client(place).about().pid == os.getpid()


@pytest.mark.chaos
def test_chaos_083_silent_peers_hold_nobody_up_and_are_dropped_after_a_second(tmp_path, no_leaks):
    with served(tmp_path) as place:
        begun = time.monotonic()
        silent = [place.raw() for _ in range(50)]
        client(place).status()
        assert time.monotonic() - begun < 20  # one after the other they would have a second each
        for sock in silent:
            with sock:
                assert sock.recv(1) == b""
        assert 0.9 < time.monotonic() - begun < 20


@pytest.mark.parametrize("how", bad_peers())
def test_chaos_084_a_bad_peer_is_dropped_and_the_next_one_served(tmp_path, caplog, how, no_leaks):
    with served(tmp_path) as place:
        for _ in range(3):
            with place.raw() as sock:
                sock.sendall(bad_peers()[how])
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
        assert client(place).status() == place.pool.status()
    assert len([record for record in caplog.records if "told once" in record.message]) <= 3
    assert not any(record.exc_info for record in caplog.records)


def test_chaos_084_a_client_with_another_key_is_refused_and_so_is_a_daemon(tmp_path):
    with served(tmp_path) as place:
        with place.raw() as sock, pytest.raises(SupervisorUnavailable, match="does not know the daemon's key"):
            handshake.connect(Link(sock, "it"), bytes(32))
        link = Link(place.raw(), "it")
        link.send(Hello(frames.PROTOCOL, "1", bytes(32)), soon())
        link.receive(frames.CHALLENGE, soon())
        link.send(frames.Proof(bytes(32)), soon())
        refusal = link.receive(frames.CHALLENGE, soon())
        assert isinstance(refusal, Failed)
        assert "does not know its key" in refusal.message
        link.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_chaos_085_another_user_is_refused_though_the_folder_be_open(tmp_path, caplog):
    with served(tmp_path) as place:
        for folder in [place.address.socket_path.parent, *place.address.socket_path.parent.parents]:
            if folder.stat().st_mode & 0o7 == 0:
                folder.chmod(0o711)
        place.address.socket_path.chmod(0o666)
        script = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5); print(s.recv(9))"
        )
        for _ in range(2):
            command = [sys.executable, "-c", script, str(place.address.socket_path)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert run.stdout.strip() == "b''", run.stderr
    assert [record.message for record in caplog.records if "65534" in record.message] == [caplog.records[0].message]


def test_chaos_086_a_pickle_is_a_bad_frame_and_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    body = pickle.dumps(Evil(canary))
    with served(tmp_path) as place:
        with place.raw() as sock:  # in place of the first word
            sock.sendall(len(body).to_bytes(4, "big") + body)
            assert sock.recv(1) == b""
        with place.raw() as sock:  # and by somebody who knows the key
            handshake.connect(Link(sock, "it"), place.address.key_path.read_bytes())
            sock.sendall(len(body).to_bytes(4, "big") + body)
            assert sock.recv(1) == b""
        client(place).status()
    assert not canary.exists()
    pickle.loads(body)  # noqa: S301 - the canary sings when it can
    assert canary.exists()


def test_chaos_089_another_version_is_refused_with_both_named(tmp_path):
    with served(tmp_path) as place:
        with place.raw() as sock:
            hello = {"type": "hello", "protocol": 7, "release": "9.9", "nonce": b"?", "a word of the future": True}
            body = msgspec.msgpack.encode(hello)
            sock.sendall(len(body).to_bytes(4, "big") + body)
            refusal = last_word(sock)
        assert refusal is not None
        assert isinstance(refusal.error(), VersionSkew)
        assert f"ForgeLLM {frames.RELEASE} (protocol {frames.PROTOCOL})" in refusal.message
        assert "9.9 (protocol 7)" in refusal.message


def test_more_connections_than_there_are_places_are_told_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(handshake, "SERVER_TIMEOUT_S", 60.0)  # so long the first two keep their places
    with served(tmp_path, connections=2) as place, place.raw(), place.raw():
        with pytest.raises(Unavailable, match="2 connections") as caught:
            client(place).status()
        assert caught.value.retry_after_s == 1.0


# Generations ---------------------------------------------------------------------------------------------------------


def words(text: str):
    """A worker that says `text` at once."""

    def answer(request: Request, generation):
        for place, word in enumerate(text.split(" ")[len(request.resume) :], len(request.resume)):
            generation.put((request.request_id, f" {word}" if place else word, (place,), None, None, None, None))
        usage = Usage(prompt_tokens=1, completion_tokens=len(text.split(" ")))
        generation.put((request.request_id, "", (), None, "stop", usage, None))

    return answer


def test_a_generation_is_the_same_over_the_socket(tmp_path, no_leaks):
    with served(tmp_path, FakePool(words("one two three"))) as place:
        generation = client(place).generate("m", "hi", max_tokens=5, stop="x")
        assert [token.text for token in generation] == ["one", " two", " three"]
        assert generation.finish_reason == "stop"
        assert generation.usage == Usage(prompt_tokens=1, completion_tokens=3)
        asked = place.pool.submitted[0]
        assert asked.sampling.max_tokens == 5
        assert asked.sampling.seed is not None  # chosen by the client, who may have to ask again


def test_the_error_of_a_generation_reaches_its_reader(tmp_path):
    fail = FakePool(lambda request, generation: generation.fail(InvalidRequest("no such thing", field="top_k")))
    with served(tmp_path, fail) as place, pytest.raises(InvalidRequest) as caught:
        client(place).generate("m", "hi").result()
    assert caught.value.field == "top_k"


def test_a_client_that_leaves_aborts_its_generation_and_no_other(tmp_path, no_leaks):
    with served(tmp_path) as place:
        stays, leaves = client(place).generate("m", "a"), client(place).generate("m", "b")
        wait_until(lambda: len(place.pool.submitted) == 2)
        leaves.close()
        wait_until(lambda: place.pool.aborted == [leaves.request_id], 2.0)
        assert leaves.take(0.0) == []
        assert leaves.finish_reason == "abort"
        stays.close()


def test_closing_wakes_whoever_reads(tmp_path):
    with served(tmp_path) as place:
        generation = client(place).generate("m", "a")
        ended = threading.Event()
        reader = threading.Thread(target=lambda: (list(generation), ended.set()))
        reader.start()
        wait_until(lambda: len(place.pool.submitted) == 1)
        generation.close()
        assert ended.wait(2.0)
        reader.join()


def test_an_abort_may_come_from_anybody(tmp_path):
    with served(tmp_path) as place, client(place).generate("m", "a") as generation:
        client(place).abort(generation.request_id)
        assert place.pool.aborted == [generation.request_id]


def test_a_client_that_does_not_read_is_cut_and_its_generation_aborted(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "SLOW_CONSUMER_TIMEOUT_S", 0.1)

    def flood(request, generation):
        for place in range(2000):
            generation.put((request.request_id, "x" * 1000, (place,), None, None, None, None))

    with served(tmp_path, FakePool(flood)) as place:
        generation = client(place).generate("m", "a")
        wait_until(lambda: place.pool.aborted == [generation.request_id])
        generation.close()


def test_a_quiet_generation_says_that_the_daemon_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "PING_S", 0.05)
    monkeypatch.setattr(remote, "SILENCE_S", 1.0)
    with served(tmp_path) as place, client(place).generate("m", "a") as generation:
        begun = time.monotonic()
        while time.monotonic() - begun < 1.3:
            assert generation.take(0.02) == []
        assert len(place.pool.submitted) == 1


def test_a_daemon_that_falls_silent_is_lost_and_given_up_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.1)
    with served(tmp_path) as place:
        begun = time.monotonic()
        with pytest.raises(SupervisorUnavailable, match=r"said nothing for 0\.1 s"):
            client(place).generate("m", "a").result()
        assert time.monotonic() - begun < 20  # not the 30 s it has by default
        assert len(place.pool.submitted) >= 2  # it was asked again meanwhile
        assert len({request.request_id for request in place.pool.submitted}) == len(place.pool.submitted)


def test_a_server_that_drains_lets_generations_end_and_takes_no_new_one(tmp_path):
    running = []
    with served(tmp_path, FakePool(lambda request, generation: running.append((request, generation)))) as place:
        with client(place).generate("m", "a") as generation:
            wait_until(lambda: len(running) == 1)
            place.server.drain()
            with pytest.raises(ShuttingDown):
                client(place).generate("m", "b").result()
            assert client(place).status() == place.pool.status()
            assert not place.server.wait_empty(0.05)
            words("the end")(*running[0])
            assert generation.result().text == "the end"
        assert place.server.wait_empty(2.0)


# What happens --------------------------------------------------------------------------------------------------------

CHANGES = [
    Announce("m#1", 1, WorkerState.STARTING, WorkerState.LOADING, "load"),
    Progressed("m#1", 1, 0.5, "reading weights"),
    Died("other#1", 2, "killed", "was killed"),
    Evicted("m", "idle", "its ttl is over"),
]


def test_who_follows_hears_what_happens_and_of_the_end(tmp_path, no_leaks):
    with served(tmp_path) as place, client(place).watch() as watch:
        place.pool.watches.take(CHANGES)
        assert watch.take(2.0) == CHANGES
        assert watch.take(0.0) == []
        place.pool.watches.end()
        assert watch.take(2.0) == []
        assert watch.has_ended
        assert not watch.is_lost


def test_who_follows_one_model_hears_of_no_other(tmp_path):
    with served(tmp_path) as place, client(place).watch(lambda name: name == "other") as watch:
        place.pool.watches.take(CHANGES)
        assert watch.take(2.0) == [CHANGES[2]]


def test_a_follower_that_leaves_is_forgotten_and_a_daemon_that_ends_is_noticed(tmp_path):
    with served(tmp_path) as place:
        client(place).watch().close()
        stays = client(place).watch()
        wait_until(lambda: len(place.pool.watches._all) == 1)
    wait_until(lambda: stays.take(0.1) == [] and stays.has_ended)
    stays.close()
