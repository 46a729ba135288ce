"""A daemon on one machine, its clients on another: paired, served, refused; and what a listener on the cable gets.

The machines are network namespaces; where those are not permitted, and once more in any case, both are this one.
"""

import contextlib
import os
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from daemons import Daemon, daemon
from forgellm import ModelManager, Settings
from forgellm.control import certificate, frames, machines, tls
from forgellm.control.link import Link
from forgellm.control.tls import TlsAddress
from forgellm.errors import SupervisorUnavailable
from networks import Capture, Host, Wire, free_port, two_hosts, why_no_namespaces
from tiny_model import build
from waiting import wait_until

pytestmark = pytest.mark.e2e

PROMPT = " ".join(f"secret{word}" for word in range(30))
TOML = """
control_host = "{host}"
control_port = {port}
machines_dir = "{machines}"
spare = false
[models.e]
source = "echo"
[models.tiny]
source = "{tiny}"
"""


@dataclass
class Pair:
    """`here` runs the daemon; `there` is paired with it, and keeps that in `folder`."""

    here: Host
    there: Host
    port: int
    served: Daemon
    folder: Path
    code: str = field(default="", repr=False)

    @property
    def place(self) -> str:
        return f"{self.here.ip}:{self.port}"

    def forgellm(self, host: Host, *words: str) -> str:
        """What a command prints, run on one of the two machines with the settings of that machine."""
        folder = self.served.folder / "here" if host is self.here else self.folder
        env = {**os.environ, "FORGELLM_MACHINES_DIR": str(folder), "FORGELLM_KEYS_FILE": str(folder / "keys.json")}
        if host is self.here:
            env["FORGELLM_CONTROL_HOST"] = host.ip
        command = host.command(sys.executable, "-m", "forgellm.cli", *words)
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def manager(self, folder: Path | None = None, place: str = "") -> ModelManager:
        settings = Settings(machines_dir=str(folder or self.folder))
        return ModelManager(settings, connect=f"tls://{place or self.place}", resume_timeout_s=5.0)

    def raw(self) -> socket.socket:
        return self.there.run(lambda: socket.create_connection((self.here.ip, self.port), timeout=10))

    def refused(self) -> list[str]:
        """Why peers were refused, as the daemon's log has it."""
        log = (self.served.folder / "daemon.log").read_text("utf-8")
        return re.findall(r"control socket: (\S+ is refused: .*) \(told once\)", log)


@contextlib.contextmanager
def hosts(kind: str) -> Iterator[tuple[Host, Host, int]]:
    if kind == "loopback":
        yield Host("127.0.0.1"), Host("127.0.0.1"), free_port()
        return
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    with two_hosts() as (here, there):
        yield here, there, 5002


@pytest.fixture(scope="module", params=["namespaces", "loopback"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp(request.param)
    with hosts(request.param) as (here, there, port):
        tiny = build(folder / "tiny")
        toml = TOML.format(host=here.ip, port=port, machines=folder / "here", tiny=tiny)
        start = here.command(sys.executable, "-m", "forgellm.daemon")
        with daemon(folder, toml, start=start) as served:
            made = Pair(here, there, port, served, folder / "there")
            made.code = made.forgellm(here, "keys", "pair")
            made.forgellm(there, "pair", made.place, made.code)
            yield made


def heard(pair: Pair) -> Capture | Wire:
    return Capture(pair.there) if pair.there.namespace else Wire((pair.here.ip, pair.port))


def test_a_load_and_a_stream_over_the_link_and_no_word_of_them_on_the_cable(pair: Pair) -> None:
    assert certificate.own(pair.served.folder / "here").fingerprint == machines.read(pair.folder)[0].fingerprint
    listener = heard(pair)
    place = pair.place
    if isinstance(listener, Wire):
        place = f"127.0.0.1:{listener.port}"
        known = machines.read(pair.folder)[0]
        machines.add(pair.folder, machines.new_machine("x", "daemon", known.certificate, known.key, place))
    manager = pair.manager(place=place)
    assert pair.there.run(manager.about).pid == pair.served.process.pid
    pair.there.run(lambda: manager.load("e"))
    with pair.there.run(lambda: manager.generate("e", PROMPT, max_tokens=200)) as generation:
        assert generation.result().text == PROMPT
    seen = listener.stop()
    assert len(seen) > 4000
    for word in (b"secret", machines.read(pair.folder)[0].key, machines.parse_code(pair.code)[1]):
        assert word not in seen


@pytest.mark.model
def test_a_real_model_answers_over_the_link_as_it_does_at_home(pair: Pair) -> None:
    manager = pair.manager()
    pair.there.run(lambda: manager.load("tiny"))
    far = pair.there.run(lambda: manager.generate("tiny", "one two", max_tokens=12, temperature=0).result())
    near = ModelManager(connect=f"unix://{pair.served.folder}/state/control.sock")
    assert far.text == near.generate("tiny", "one two", max_tokens=12, temperature=0).result().text
    assert far.usage.completion_tokens > 0


def test_the_web_server_of_the_other_machine_serves_what_the_daemon_has(pair: Pair, tmp_path: Path) -> None:
    web = [sys.executable, "-m", "forgellm.cli", "web", "--connect", f"tls://{pair.place}"]
    pair.there.run(lambda: pair.manager().load("e"))
    with daemon(tmp_path, f'machines_dir = "{pair.folder}"\n', start=pair.there.command(*web)) as served:
        body = {"model": "e", "prompt": "over the link", "max_tokens": 9}
        answer = pair.there.run(
            lambda: httpx2.post(f"{served.url}/api/model/generate", json=body, timeout=20, trust_env=False)
        )
        assert answer.status_code == 200, answer.text
        assert "over the link" in answer.text


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.canary,))


@pytest.mark.chaos
def test_peers_that_are_not_paired_are_refused_and_told_once_while_others_are_served(
    pair: Pair, tmp_path: Path
) -> None:
    manager = pair.manager()
    pair.there.run(lambda: manager.load("e"))
    silent = [pair.raw() for _ in range(50)]
    begun = time.monotonic()
    with pair.there.run(lambda: manager.generate("e", "while they wait")) as generation:
        assert generation.result().text == "while they wait"
    assert time.monotonic() - begun < 2.5  # less than the silent ones are given
    evil = pickle.dumps(Evil(tmp_path / "canary"))
    bad = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", len(evil).to_bytes(4, "big") + evil]
    for words in bad * 2:
        with pair.raw() as sock, contextlib.suppress(ConnectionError):
            sock.sendall(words)
            while sock.recv(1 << 16):
                pass
    thief = tmp_path / "thief"  # has the daemon's certificate and the key of the pair, but a certificate of its own
    machines.add(thief, machines.read(pair.folder)[0])
    for folder in (thief, thief, tmp_path / "stranger"):
        with pytest.raises(SupervisorUnavailable, match="pair"):
            pair.there.run(pair.manager(folder).about)
    for sock in silent:
        with sock:
            assert sock.recv(1) == b""
    assert time.monotonic() - begun < 10
    assert not (tmp_path / "canary").exists()
    refused = pair.refused()
    assert len(refused) == len(set(refused)) >= 3
    assert all(line.startswith(f"{pair.there.ip} is refused") for line in refused)
    assert pair.there.run(manager.about).pid == pair.served.process.pid


@pytest.mark.chaos
def test_a_wrong_key_is_refused_though_the_certificate_is_right(pair: Pair, tmp_path: Path) -> None:
    known, own = machines.read(pair.folder)[0], certificate.own(pair.folder)
    (tmp_path / own.path.name).write_bytes(own.path.read_bytes())
    (tmp_path / own.path.name).chmod(0o600)
    machines.add(tmp_path, machines.new_machine("x", "daemon", known.certificate, bytes(32), pair.place))
    with pytest.raises(SupervisorUnavailable, match="does not know the daemon's key"):
        pair.there.run(pair.manager(tmp_path).about)
    context, address = tls.client_context(own, known.certificate), TlsAddress(pair.here.ip, pair.port, pair.folder)
    link = Link(pair.there.run(lambda: tls.connect(address, context, known.fingerprint)), "the daemon")
    soon = time.monotonic() + 5
    link.send(frames.Hello(frames.PROTOCOL, "1", bytes(32)), soon)
    assert isinstance(link.receive(frames.CHALLENGE, soon), frames.Challenge)
    link.send(frames.Proof(bytes(32)), soon)  # one that does not check the daemon's proof
    assert isinstance(link.receive(frames.CHALLENGE, soon), frames.Failed)
    link.close()
    wait_until(lambda: any("does not know its key" in each for each in pair.refused()))
    assert pair.there.run(pair.manager().about).pid == pair.served.process.pid


@pytest.mark.chaos
def test_a_connection_that_is_recorded_and_said_again_does_nothing(pair: Pair) -> None:
    manager = pair.manager()
    pair.there.run(lambda: manager.load("e"))
    recorder = pair.there.run(lambda: Wire((pair.here.ip, pair.port)))
    between = f"127.0.0.1:{recorder.port}"
    known = machines.read(pair.folder)[0]
    machines.add(pair.folder, machines.new_machine("x", "daemon", known.certificate, known.key, between))
    pair.there.run(lambda: pair.manager(place=between).unload("e"))
    recorder.stop()
    said = b"".join(recorder.up)
    pair.there.run(lambda: manager.load("e"))
    with pair.raw() as sock, contextlib.suppress(ConnectionError):
        sock.sendall(said)
        while sock.recv(1 << 16):
            pass
    loaded = pair.there.run(manager.status).model("e")
    assert loaded is not None
    assert loaded.state == "ready"
    wait_until(lambda: any("DECRYPTION_FAILED_OR_BAD_RECORD_MAC" in each for each in pair.refused()))


def test_a_machine_that_is_revoked_is_refused_and_what_runs_for_it_ends_well(pair: Pair, tmp_path: Path) -> None:
    """On a second machine of its own, so that the first one stays paired."""
    second = Pair(pair.here, pair.there, pair.port, pair.served, tmp_path / "second")
    before = {each.id for each in machines.read(pair.served.folder / "here")}
    code = second.forgellm(pair.here, "keys", "pair")
    second.forgellm(pair.there, "pair", second.place, code)
    manager = second.manager()
    pair.there.run(lambda: manager.load("e"))
    running = pair.there.run(lambda: manager.generate("e", PROMPT))
    entry = next(each for each in machines.read(pair.served.folder / "here") if each.id not in before)
    assert "revoked" in second.forgellm(pair.here, "keys", "revoke", entry.id)
    assert running.result().text == PROMPT
    with pytest.raises(SupervisorUnavailable, match="pair them again"):
        pair.there.run(manager.about)
    assert pair.there.run(pair.manager().about).pid == pair.served.process.pid
