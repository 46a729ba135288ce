"""The link between two machines: paired ones are served over TLS, others refused, and nobody waits for those."""

import os
import pickle
import select
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from control_parts import FakePool
from test_control_server import Evil, words
from tls_parts import linked

from forgellm.control import certificate, frames, handshake, machines, pairing, tls, tls_listener
from forgellm.control.link import Link, LinkLost
from forgellm.control.tls import TlsAddress
from forgellm.errors import ConfigError, InvalidRequest, SupervisorUnavailable
from networks import Capture, Wire, two_hosts, why_no_namespaces
from waiting import DEADLINE_S, wait_until

PROMPT = "the treasure is under the old oak"


def refusals(caplog) -> list[str]:
    return [record.message for record in caplog.records if "is refused" in record.message]


def say_all(sock: socket.socket, data: bytes) -> None:
    """Send it and wait for the end. Being cut off in the middle is as good as being closed; silence is not."""
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise


def test_a_machine_that_was_paired_is_served_and_a_generation_is_the_same(tmp_path, no_leaks):
    with linked(tmp_path, FakePool(words("one two three"))) as place:
        paired = place.pair()
        assert paired.fingerprint == certificate.own(place.here).fingerprint
        assert [each.fingerprint for each in machines.read(place.here)] == [certificate.own(place.there).fingerprint]
        assert place.client().about().pid == os.getpid()
        assert place.client().load("m", wait=False).model == "m"
        assert [token.text for token in place.client().generate("m", PROMPT)] == ["one", " two", " three"]
        assert place.pool.submitted[0].messages == ({"role": "user", "content": PROMPT},)


def test_a_client_that_leaves_aborts_its_generation(tmp_path, no_leaks):
    with linked(tmp_path) as place:
        place.pair()
        generation = place.client().generate("m", "a")
        wait_until(lambda: len(place.pool.submitted) == 1)
        generation.close()
        wait_until(lambda: place.pool.aborted == [generation.request_id], 2.0)


def test_a_server_that_stops_cuts_a_stream_that_goes_on(tmp_path, no_leaks):
    with linked(tmp_path) as place:
        place.pair()
        generation = place.client().generate("m", "a")
        wait_until(lambda: len(place.pool.submitted) == 1)
    with pytest.raises(SupervisorUnavailable):
        generation.result()


def test_the_wire_holds_nothing_in_clear_and_its_bytes_are_worth_nothing_a_second_time(tmp_path, no_leaks):
    with linked(tmp_path, FakePool(words("under the stone"))) as place:
        wire = Wire((place.address.host, place.address.port))
        between = TlsAddress("127.0.0.1", wire.port, place.there)
        code = place.code()
        pairing.pair(between, code, place.there)
        place.address = between
        assert place.client().generate("m", PROMPT).result().text == "under the stone"
        said = list(wire.up)
        seen = wire.stop()
        assert len(seen) > 2000
        secret = machines.parse_code(code)[1]
        for word in (PROMPT.encode(), b"treasure", b"under the stone", secret, machines.read(place.there)[0].key):
            assert word not in seen
        with socket.create_connection(wire.target, timeout=10) as replay:
            say_all(replay, b"".join(said))
        assert len(place.pool.submitted) == 1


@pytest.mark.process
def test_between_two_machines_a_listener_on_the_cable_learns_nothing(tmp_path, no_leaks):
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with two_hosts() as (here, there), linked(tmp_path, FakePool(words("under the stone")), here) as place:
        capture = Capture(there)
        code = place.code()
        there.run(lambda: pairing.pair(place.address, code, place.there))
        assert there.run(place.client().about).pid == os.getpid()
        assert there.run(lambda: place.client().generate("m", PROMPT)).result().text == "under the stone"
        seen = capture.stop()
        assert len(seen) > 4000
        for word in (b"treasure", b"under the stone", machines.parse_code(code)[1], machines.read(place.there)[0].key):
            assert word not in seen
        with there.run(place.raw) as sock:
            say_all(sock, b"GET / HTTP/1.1\r\n\r\n")
        there.run(place.client().about)


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_chaos_083_silent_peers_hold_nobody_up_and_are_dropped(tmp_path, monkeypatch, no_leaks, caplog):
    monkeypatch.setattr(tls_listener, "HANDSHAKE_TIMEOUT_S", 1.0)
    with linked(tmp_path) as place:
        place.pair()
        begun = time.monotonic()
        silent = [place.raw() for _ in range(50)]
        place.client().about()
        assert time.monotonic() - begun < 0.9  # while all of them are there
        for sock in silent:
            with sock:
                assert sock.recv(1) == b""
        assert 0.9 < time.monotonic() - begun < 4
    assert len(refusals(caplog)) == 1


def test_strangers_take_only_their_share_of_the_places(tmp_path, monkeypatch, no_leaks):
    monkeypatch.setattr(tls_listener, "STRANGERS", 2)
    with linked(tmp_path) as place, place.raw() as first, place.raw() as second, place.raw() as third:
        (refused,), _, _ = select.select([first, second, third], [], [], DEADLINE_S)  # one of them, and at once
        assert refused.recv(1) == b""


def bad_peers() -> dict[str, bytes]:
    return {
        "closes at once": b"",
        "speaks HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "sends garbage": os.urandom(4096),
        "speaks as on the local socket": frames.encode(frames.Hello(frames.PROTOCOL, "1", bytes(32))),
        "boasts": b"\x16\x03\x01\xff\xff" + bytes(60000),
    }


@pytest.mark.parametrize("what", bad_peers())
def test_chaos_084_a_bad_peer_is_refused_told_once_and_the_others_are_served(tmp_path, what, caplog, no_leaks):
    with linked(tmp_path) as place:
        place.pair()
        for _ in range(3):
            with place.raw() as sock:
                say_all(sock, bad_peers()[what])
        place.client().about()
    assert len(refusals(caplog)) == 1
    assert "127.0.0.1 is refused" in refusals(caplog)[0]


def test_an_older_tls_is_refused(tmp_path):
    with linked(tmp_path) as place:
        context = tls.pairing_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with place.raw() as sock, pytest.raises(ssl.SSLError, match="VERSION"):
            context.wrap_socket(sock)


def test_a_machine_that_was_never_paired_is_refused_on_both_sides(tmp_path, caplog):
    with linked(tmp_path) as place:
        place.pair()
        with pytest.raises(SupervisorUnavailable, match="forgellm pair 127"):
            place.client(tmp_path / "stranger").about()
        daemon = machines.read(place.there)[0]
        machines.add(tmp_path / "thief", daemon)  # the key and the daemon's certificate, but not the client's
        with pytest.raises(SupervisorUnavailable, match="pair them again"):
            place.client(tmp_path / "thief").about()
        place.client().about()
    assert len(refusals(caplog)) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refusals(caplog)[0]


def test_a_wrong_key_is_refused_though_the_certificate_is_right(tmp_path, caplog):
    with linked(tmp_path) as place:
        place.pair()
        known = machines.read(place.here)[0]
        machines.add(place.here, machines.new_machine(known.name, "client", known.certificate, bytes(32)))
        with pytest.raises(SupervisorUnavailable, match="does not know the daemon's key"):
            place.client().about()
        own, daemon = certificate.own(place.there), machines.read(place.there)[0]
        sock = tls.connect(place.address, tls.client_context(own, daemon.certificate), daemon.fingerprint)
        link = Link(sock, "it")
        soon = time.monotonic() + 5
        link.send(frames.Hello(frames.PROTOCOL, "1", bytes(32)), soon)
        link.receive(frames.CHALLENGE, soon)
        link.send(frames.Proof(bytes(32)), soon)
        refusal = link.receive(frames.CHALLENGE, soon)
        assert isinstance(refusal, frames.Failed)
        link.close()
    assert any("does not know its key" in each for each in refusals(caplog))


def test_a_daemon_with_another_certificate_is_not_spoken_to(tmp_path):
    with linked(tmp_path / "a") as right, linked(tmp_path / "b") as wrong:
        right.pair()
        daemon = machines.read(right.there)[0]
        there = wrong.address.place
        machines.add(right.there, machines.new_machine("x", "daemon", daemon.certificate, daemon.key, there))
        with pytest.raises(SupervisorUnavailable, match="another certificate"):
            wrong.client(right.there).about()


def test_who_has_no_certificate_may_only_pair(tmp_path):
    with linked(tmp_path) as place:
        place.pair()
        expected = certificate.own(place.here).fingerprint
        link = Link(tls.connect(place.address, tls.pairing_context(), expected), "it")
        with pytest.raises((SupervisorUnavailable, LinkLost)):
            handshake.connect(link, machines.read(place.there)[0].key)
        link.close()
        place.client().about()


def test_chaos_086_a_pickle_does_not_run_before_or_after_the_handshake(tmp_path):
    canary = tmp_path / "canary"
    body = pickle.dumps(Evil(canary))
    framed = len(body).to_bytes(4, "big") + body
    with linked(tmp_path) as place:
        place.pair()
        own, daemon = certificate.own(place.there), machines.read(place.there)[0]
        for context in (tls.pairing_context(), tls.client_context(own, daemon.certificate)):
            with tls.connect(place.address, context, daemon.fingerprint) as sock:
                if context.verify_mode == ssl.CERT_REQUIRED:
                    handshake.connect(Link(sock, "it"), daemon.key, daemon.fingerprint + own.fingerprint)
                sock.sendall(framed)
                assert sock.recv(1) == b""
        place.client().about()
    assert not canary.exists()
    pickle.loads(body)  # noqa: S301 - the canary sings when it can
    assert canary.exists()


def test_a_revoked_machine_is_refused_from_the_next_connection_on(tmp_path):
    with linked(tmp_path) as place:
        place.pair()
        place.client().about()
        machines.remove(place.here, machines.read(place.here)[0].id)
        with pytest.raises(SupervisorUnavailable, match="pair them again"):
            place.client().about()
        place.pair()
        place.client().about()
        assert [each.role for each in machines.read(place.there)] == ["daemon"]  # the new entry in place of the old


# Kept ----------------------------------------------------------------------------------------------------------------


def test_the_private_key_is_read_once_however_many_calls_are_made(tmp_path, monkeypatch):
    """It is a third of a call; what makes another certificate of it is read each time."""
    with linked(tmp_path) as place:
        place.pair()
        place.client().about()
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", lambda *_: pytest.fail("the key is read again"))
        for _ in range(3):
            assert place.client().about().pid == os.getpid()


@pytest.mark.parametrize("machine", ["here", "there"])
def test_a_new_certificate_on_either_machine_needs_a_new_pairing_and_no_restart(tmp_path, machine):
    with linked(tmp_path) as place:
        place.pair()
        client = place.client()
        client.about()
        old = certificate.own(getattr(place, machine))
        old.path.unlink()
        with pytest.raises(SupervisorUnavailable, match=r"another certificate|pair them again"):
            client.about()
        place.pair()
        assert certificate.own(getattr(place, machine)) != old
        client.about()
        assert len([each for each in machines.read(place.there) if each.role == "daemon"]) == 1


# Closing -------------------------------------------------------------------------------------------------------------


def test_what_another_thread_sends_while_the_link_is_closed_never_goes_out_in_clear(tmp_path):
    """SSLSocket.shutdown() takes TLS off before it shuts down: a sender between the two would send plain text."""
    with linked(tmp_path) as place:
        wire = Wire((place.address.host, place.address.port))
        sock = tls.connect(
            TlsAddress("127.0.0.1", wire.port, place.there),
            tls.pairing_context(),
            certificate.own(place.here).fingerprint,
        )
        link = Link(sock, "it")
        go = threading.Event()

        def talk() -> None:
            go.set()
            try:
                while True:
                    link.send(frames.Load(PROMPT, wait=False, timeout_s=None, options={}), time.monotonic() + 1)
            except LinkLost:
                return

        talker = threading.Thread(target=talk)
        talker.start()
        go.wait(5)
        link.close()
        talker.join(5)
        assert not talker.is_alive()
        assert PROMPT.encode() not in wire.stop()


def test_a_certificate_that_others_may_read_is_refused(tmp_path):
    own = certificate.own(tmp_path / "m")
    assert own.path.stat().st_mode & 0o777 == 0o600
    assert certificate.own(tmp_path / "m") == own
    own.path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        certificate.own(tmp_path / "m")


def test_a_port_in_use_is_told_before_anything_else(tmp_path):
    with linked(tmp_path) as place:
        other = tls_listener.TlsListener("127.0.0.1", place.address.port, Path(place.here))
        with pytest.raises(Exception, match="in use") as caught:
            other.claim()
        assert type(caught.value).__name__ == "AddressInUse"
        other.close()


# Pairing -------------------------------------------------------------------------------------------------------------


def test_a_code_is_good_for_one_machine(tmp_path):
    with linked(tmp_path) as place:
        code = place.code()
        pairing.pair(place.address, code, place.there)
        with pytest.raises(InvalidRequest, match="keys pair"):
            pairing.pair(place.address, code, tmp_path / "second")
        assert machines.read(tmp_path / "second") == []
        assert len(machines.read(place.here)) == 1


def test_somebody_in_between_is_not_told_the_secret(tmp_path):
    """Whoever has no key to the daemon's certificate fails at the fingerprint in the code, before a word is said."""
    with linked(tmp_path / "a") as right, linked(tmp_path / "b") as between:
        with pytest.raises(SupervisorUnavailable, match="nothing was told"):
            pairing.pair(between.address, right.code(), right.there)
        assert machines.read(right.there) == []


def test_a_certificate_that_is_none_is_refused_and_leaves_the_code_and_the_others_alone(tmp_path):
    with linked(tmp_path) as place:
        code = place.code()
        expected, secret = machines.parse_code(code)
        link = Link(tls.connect(place.address, tls.pairing_context(), expected), "it")
        link.send(pairing.Pair("evil", b"x" * 100, secret), time.monotonic() + 5)
        with pytest.raises(LinkLost):
            link.receive(pairing.PAIRED, time.monotonic() + 5)
        link.close()
        pairing.pair(place.address, code, place.there)
        place.client().about()
