"""The control socket on this machine: its folder, its key, its lock, and both ends of it. Serves nothing itself.

The lock decides who the daemon is, never a file with a process id: the system frees it however its holder ends.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Self

from forgellm.control import handshake
from forgellm.control.link import Link, LinkLost
from forgellm.errors import AddressInUse, ConfigError, SupervisorUnavailable

PATH_LIMIT_BYTES = 103  # macOS has 104 with the final NUL, Linux 108
KEY_BYTES = 32
BACKLOG = 128
CONNECT_TIMEOUT_S = 2
_LOCAL_PEERCRED = 1  # macOS, at level 0; struct xucred begins with its version and the uid, 4 bytes each


class UnixAddress:
    """Where a daemon of this machine is found: its socket, and beside it what belongs to it."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.key_path = socket_path.with_suffix(".key")
        self.lock_path = socket_path.with_suffix(".lock")
        self.start_lock_path = socket_path.with_suffix(".start")
        self.journal_path = socket_path.with_suffix(".journal.json")
        self.log_path = socket_path.with_suffix(".log")

    def __str__(self) -> str:
        return f"unix://{self.socket_path}"

    def check(self) -> None:
        """Make the folder if it is missing; raise ConfigError unless it is a real one, ours, and nobody else's."""
        folder = self.socket_path.parent
        length = len(os.fsencode(self.socket_path))
        if length > PATH_LIMIT_BYTES:
            raise ConfigError(
                f"the socket {self.socket_path} has a path of {length} bytes, and the system takes {PATH_LIMIT_BYTES}; "
                "set `state_dir` to a shorter one"
            )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
        except OSError as error:
            raise ConfigError(f"the folder {folder} (`state_dir`) cannot be made: {error.strerror}") from error
        _check_folder(folder, found)

    def dial(self) -> Link:
        """A connection to the daemon, with the handshake done. Raises Unavailable, most often SupervisorUnavailable."""
        try:
            key = self.key_path.read_bytes()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise self._absent(error) from error
        link = Link(sock, f"the daemon at {self}")
        try:
            # A blocking connect waits for a place in a full backlog, for at most this long.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_TIMEOUT_S, 0))
            sock.connect(str(self.socket_path))
            handshake.connect(link, key)
        except OSError as error:
            link.close()
            raise self._absent(error) from error
        except LinkLost as error:
            link.close()
            raise SupervisorUnavailable(str(error)) from error
        except BaseException:  # whatever it was, it goes on up; only the socket is closed
            link.close()
            raise
        return link

    def _absent(self, error: OSError) -> SupervisorUnavailable:
        why = error.strerror or type(error).__name__
        return SupervisorUnavailable(f"no daemon answers at {self} ({why})")


class Lock:
    """A file that one process at a time holds. It is never removed: its inode is the lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def take(self) -> bool:
        """Whether it is ours now; says in the file whose it is, for people only. Raises ConfigError for a bad path."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise ConfigError(f"the lock file {self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return False
            raise ConfigError(f"the lock file {self._path} cannot be locked: {error.strerror}") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return True

    def owner(self) -> str:
        """What the holder wrote: its process id."""
        try:
            return self._path.read_text("utf-8").strip()[:20] or "?"
        except (OSError, UnicodeDecodeError):
            return "?"

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class UnixListener:
    """The daemon's end: the lock, the key, a listening socket. claim(), listen(), then close()."""

    def __init__(self, address: UnixAddress) -> None:
        self.address = address
        self._lock = Lock(address.lock_path)
        self._key = b""
        self._is_bound = False
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def claim(self) -> None:
        """Become the daemon of this folder. Raises AddressInUse naming the other one, or ConfigError."""
        self.address.check()
        if not self._lock.take():
            raise AddressInUse(
                f"process {self._lock.owner()} is the daemon of {self.address.socket_path.parent} already; "
                "for a second one, set another `state_dir`"
            )
        self._key = _the_key(self.address.key_path)

    def listen(self) -> None:
        """Take the socket's path, from a daemon that died if need be; clients can connect. Raises ConfigError."""
        path = self.address.socket_path
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise ConfigError(f"{path} is in the way of the control socket; remove it, or set `socket`")
                path.unlink()
            self.sock.bind(str(path))
            self._is_bound = True
            path.chmod(0o600)  # nobody else came between: the folder is ours alone
            self.sock.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {path}: {error.strerror or error}", field="socket") from error

    def admit(self, sock: socket.socket) -> Link:
        """A connection that was just accepted: who it is, and whether it knows the key. A second at most.

        Raises BadFrame, LinkLost, or the error that the client was told."""
        link = Link(sock, "a client")
        uid = peer_uid(sock)
        if uid != os.geteuid():
            raise SupervisorUnavailable(f"the user {uid} is refused: the control socket is its owner's alone")
        handshake.accept(link, self._key)
        return link

    def close(self) -> None:
        """Nobody is there any more. Idempotent."""
        if self._is_bound:
            self._is_bound = False
            self.address.socket_path.unlink(missing_ok=True)
        self.sock.close()
        self._lock.release()


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of an AF_UNIX socket, from the system."""
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    credentials = sock.getsockopt(0, _LOCAL_PEERCRED, 76)  # untested: no Mac was at hand
    return int(struct.unpack_from("=II", credentials)[1])


def _check_folder(folder: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{folder} (`state_dir`) must be a folder, and no link to one")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"the folder {folder} (`state_dir`) belongs to user {found.st_uid}; set one of your own")
    if found.st_mode & 0o077:
        raise ConfigError(f"others may enter the folder {folder} (`state_dir`); `chmod 700 {folder}`, or set another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"the folder {folder} (`state_dir`) cannot be written")


def _the_key(path: Path) -> bytes:
    """The key in that file, which only its owner reads; a new one, written whole or not at all, if there is none."""
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077 and found.st_uid == os.geteuid():
            key = path.read_bytes()
            if len(key) == KEY_BYTES:
                return key
    except OSError:
        pass  # a new one, then
    key = secrets.token_bytes(KEY_BYTES)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, key)
        finally:
            os.close(descriptor)
        new.replace(path)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    return key


def wait_for(lock: Lock, timeout_s: float) -> bool:
    """Whether the lock is ours within `timeout_s`; whoever holds it holds it briefly."""
    deadline = time.monotonic() + timeout_s
    while not lock.take():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
