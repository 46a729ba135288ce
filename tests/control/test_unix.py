"""The folder, the lock and the key of the control socket."""

import os
import socket
import stat
from pathlib import Path

import pytest

from forgellm.control import unix
from forgellm.control.address import parse
from forgellm.control.unix import Lock, UnixAddress, UnixListener
from forgellm.errors import AddressInUse, ConfigError, SupervisorUnavailable


@pytest.fixture
def address(tmp_path: Path) -> UnixAddress:
    return UnixAddress(tmp_path / "s" / "control.sock")


def listening(address: UnixAddress) -> UnixListener:
    listener = UnixListener(address)
    listener.claim()
    listener.listen()
    return listener


def refused(address: UnixAddress) -> str:
    listener = UnixListener(address)
    try:
        with pytest.raises(ConfigError) as caught:
            listener.claim()
    finally:
        listener.close()
    return caught.value.message


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_may_come_near(address):
    old = os.umask(0)
    try:
        listener = listening(address)
    finally:
        os.umask(old)
    assert mode(address.socket_path.parent) == 0o700
    assert {mode(path) for path in (address.socket_path, address.key_path, address.lock_path)} == {0o600}
    listener.close()
    assert not address.socket_path.exists()


def test_chaos_073_a_second_daemon_is_told_who_is_the_first(address):
    first = listening(address)
    second = UnixListener(address)
    with pytest.raises(AddressInUse, match=f"process {os.getpid()} "):
        second.claim()
    second.close()
    assert address.socket_path.exists()  # the first one is not disturbed
    first.close()
    listening(address).close()


def test_chaos_074_the_socket_of_a_daemon_that_died_is_taken_over(address):
    address.check()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address.socket_path))
    address.lock_path.write_text(f"{os.getppid()}\n", "utf-8")  # a pid that now is somebody else's
    listener = listening(address)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(address.socket_path))
    listener.close()


def test_chaos_074_a_file_that_is_no_socket_is_left_alone(address):
    address.check()
    address.socket_path.write_text("mine", "utf-8")
    listener = UnixListener(address)
    listener.claim()
    with pytest.raises(ConfigError, match="in the way"):
        listener.listen()
    listener.close()
    assert address.socket_path.read_text("utf-8") == "mine"


def test_chaos_075_a_folder_that_cannot_be_trusted_is_refused_with_the_remedy(address, monkeypatch):
    folder = address.socket_path.parent
    folder.mkdir(mode=0o755)
    assert f"chmod 700 {folder}" in refused(address)
    folder.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        assert "belongs to user" in refused(address)
    folder.rename(folder.with_name("real"))
    folder.symlink_to(folder.with_name("real"))
    assert "no link" in refused(address)
    folder.unlink()
    folder.write_text("", "utf-8")
    assert "must be a folder" in refused(address)


def test_chaos_075_a_path_that_the_system_cannot_take_is_refused_by_its_length(tmp_path):
    deep = tmp_path / ("d" * 100)
    assert "103" in refused(UnixAddress(deep / "control.sock"))
    assert not deep.exists()


def test_chaos_075_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    assert str(tmp_path / "file" / "s") in refused(UnixAddress(tmp_path / "file" / "s" / "control.sock"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_chaos_075_a_read_only_folder_is_refused(address):
    address.socket_path.parent.mkdir(mode=0o500)
    assert "cannot be written" in refused(address)


def test_the_key_outlives_the_daemon_so_that_clients_need_not_read_it_twice(address):
    listening(address).close()
    key = address.key_path.read_bytes()
    assert len(key) == unix.KEY_BYTES
    listening(address).close()
    assert address.key_path.read_bytes() == key


@pytest.mark.parametrize("damage", ["short", "readable", "link"])
def test_a_key_that_others_may_know_is_replaced(address, damage):
    listening(address).close()
    key = address.key_path.read_bytes()
    if damage == "short":
        address.key_path.write_bytes(key[:5])
    elif damage == "readable":
        address.key_path.chmod(0o644)
    else:
        address.key_path.rename(address.key_path.with_suffix(".old"))
        address.key_path.symlink_to(address.key_path.with_suffix(".old"))
    listening(address).close()
    assert address.key_path.read_bytes() != key
    assert mode(address.key_path) == 0o600
    assert not address.key_path.is_symlink()


def test_a_lock_is_one_holders_and_says_whose(tmp_path):
    with Lock(tmp_path / "l") as first, Lock(tmp_path / "l") as second:
        assert first.take()
        assert not second.take()
        assert second.owner() == str(os.getpid())
        assert not unix.wait_for(second, 0.0)
        first.release()
        assert unix.wait_for(second, 0.0)


def test_a_lock_behind_a_link_is_refused(tmp_path):
    (tmp_path / "l").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be opened"):
        Lock(tmp_path / "l").take()
    assert not (tmp_path / "elsewhere").exists()


def test_where_nobody_listens_it_says_so(address):
    with pytest.raises(SupervisorUnavailable, match=str(address)):
        address.dial()
    listening(address).close()
    with pytest.raises(SupervisorUnavailable, match="no daemon answers"):
        address.dial()


def test_an_address_reads_as_it_is_written(tmp_path):
    assert str(parse(f"unix://{tmp_path}/a.sock", tmp_path)) == f"unix://{tmp_path}/a.sock"


@pytest.mark.parametrize("text", ["", "/tmp/x", "unix://relative/x", "http://localhost:5001", "unix:"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="unix:///path"):
        parse(text, Path())
