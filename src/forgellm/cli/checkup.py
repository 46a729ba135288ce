"""What `forgellm doctor` looks at, one function each. They look, and change nothing; a finding says what to do."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from forgellm import catalog, keys
from forgellm.api.security import is_loopback
from forgellm.cli.client import Client
from forgellm.config import Settings
from forgellm.control.unix import PATH_LIMIT_BYTES
from forgellm.errors import ForgeLLMError
from forgellm.supervisor.budget import size
from forgellm.supervisor.loop import self_test_once
from forgellm.supervisor.memory import automatic_budget_bytes

MLX_TIMEOUT_S = 120.0
WANTED_FILES = 4096  # descriptors: a connection each, and the workers' pipes
WANTED_PROCESSES = 256
LITTLE_DISK_BYTES = 5_000_000_000
LITTLE_MEMORY_BYTES = 2_000_000_000
OPENED_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO
COMPILERS = ("cc", "gcc", "clang")


@dataclass(frozen=True, slots=True)
class Finding:
    """`level`: "ok", "warn" (it works, but) or "fail" (it will not work). `remedy`: what to do; "" if nothing."""

    check: str
    level: Literal["ok", "warn", "fail"]
    says: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every finding, as it is made."""
    for check in CHECKS:
        yield from check(settings)


def python(settings: Settings) -> Iterator[Finding]:
    says = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        yield Finding("python", "fail", says, "MLX needs Apple silicon, and a Python that is not under Rosetta")
    else:
        yield Finding("python", "ok", says)


def mlx(settings: Settings) -> Iterator[Finding]:
    """In a process of its own: this one never imports it, and a broken install may crash."""
    code = "import mlx.core as mx; print(mx.default_device()); mx.eval(mx.ones(2) + 1)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=MLX_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("mlx", "fail", f"no answer in {MLX_TIMEOUT_S:.0f} s", "see what else this machine is doing")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("mlx", "fail", last, "install ForgeLLM again, in a fresh virtual environment")
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm"))
    yield Finding("mlx", "ok", f"{versions}, {done.stdout.strip()}")


def blas(settings: Settings) -> Iterator[Finding]:
    if sys.platform != "linux":
        return
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    is_made = any((settings.cache_path / "blas").glob("*"))
    if not settings.fast_blas:
        yield Finding("blas", "warn", "fast_blas is off: the stock BLAS is many times slower", "set fast_blas = true")
    elif compiler is None and not is_made:
        says = "no C compiler, which makes the bridge to the fast BLAS once; without it the stock one is used"
        yield Finding("blas", "warn", says, "apt install gcc libc6-dev, or libopenblas0")
    else:
        yield Finding("blas", "ok", f"scipy-openblas32, {'made already' if is_made else f'made with {compiler}'}")


def memory(settings: Settings) -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    budget = settings.memory_budget_bytes or automatic_budget_bytes()
    says = f"{size(free)} available; the workers may hold {size(budget)}"
    if free < LITTLE_MEMORY_BYTES:
        yield Finding("memory", "warn", says, "end other programs, or choose small models")
    elif settings.memory_budget_bytes > psutil.virtual_memory().total:
        yield Finding("memory", "warn", says, "memory_budget_bytes is more than there is; set it to 0 or lower it")
    else:
        yield Finding("memory", "ok", says)


def limits(settings: Settings) -> Iterator[Finding]:
    for name, number, wanted in (
        ("open files", resource.RLIMIT_NOFILE, WANTED_FILES),
        ("processes", resource.RLIMIT_NPROC, WANTED_PROCESSES),
    ):
        soft, hard = resource.getrlimit(number)
        most = hard if number == resource.RLIMIT_NOFILE else soft  # the daemon raises its own limit of open files
        says = f"{name}: {'no limit' if most == resource.RLIM_INFINITY else most}"
        if most != resource.RLIM_INFINITY and most < wanted:
            yield Finding("limits", "warn", says, f"raise it to {wanted} (ulimit, or LimitNOFILE= of the service)")
        else:
            yield Finding("limits", "ok", says)


def address(settings: Settings) -> Iterator[Finding]:
    """A daemon that answers, a free port, or somebody else's."""
    place = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    with Client(f"http://{place}") as client:
        if client.answers():
            yield Finding("address", "ok", f"a daemon answers at {client.url}")
            return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((settings.host, settings.port))
        except OSError as error:
            yield Finding("address", "fail", f"{place}: {error.strerror}", "end that program, or set another `port`")
            return
    yield Finding("address", "ok", f"{place} is free")


def folders(settings: Settings) -> Iterator[Finding]:
    """What the daemon writes: its caches and logs, and the folder of its socket, which is nobody else's business."""
    cache = _nearest(settings.cache_path)
    free = shutil.disk_usage(cache).free
    level: Literal["ok", "warn"] = "ok" if free >= LITTLE_DISK_BYTES else "warn"
    remedy = "" if level == "ok" else "make room: models are large"
    yield Finding("disk", level, f"{settings.cache_path}: {size(free)} free", remedy)
    for folder in (settings.cache_path, settings.log_path, settings.socket_path.parent):
        found = _nearest(folder)
        if not _is_writable(found):
            yield Finding("folders", "fail", f"{found} may not be written", f"chown or chmod {found}")
    state, length = settings.socket_path.parent, len(os.fsencode(settings.socket_path))
    if length > PATH_LIMIT_BYTES:
        says = f"the path of {settings.socket_path} has {length} bytes, and the system takes {PATH_LIMIT_BYTES}"
        yield Finding("folders", "fail", says, "set `state_dir` to a shorter one")
    elif state.is_dir() and state.stat().st_mode & OPENED_FOR_OTHERS:
        yield Finding("folders", "fail", f"{state}, of the control socket, is open to others", f"chmod 700 {state}")
    else:
        yield Finding("folders", "ok", f"control socket {settings.socket_path}")


def api_keys(settings: Settings) -> Iterator[Finding]:
    try:
        ring = keys.read(settings.keys_path)
    except ForgeLLMError as error:
        yield Finding("keys", "fail", error.message, f"chmod 600 {settings.keys_path}, or write it anew")
        return
    if ring is None and not is_loopback(settings.host):
        yield Finding("keys", "fail", f"others reach {settings.host}, and there are no keys", "forgellm keys create")
    elif ring is None:
        yield Finding("keys", "ok", "none: everybody on this machine may use the server")
    else:
        yield Finding("keys", "ok", f"{len(ring.keys)} in {settings.keys_path}")


def models(settings: Settings) -> Iterator[Finding]:
    """Every model of the settings, resolved as a load would, and how many others there are."""
    for name in settings.models:
        try:
            catalog.resolve(name, settings)
        except ForgeLLMError as error:
            yield Finding("models", "fail", f"{name}: {error.message}", f"mend or remove [models.{name}]")
    yield Finding("models", "ok", f"{len(catalog.entries(settings))} can be loaded by name; see `forgellm models`")


def channel(settings: Settings) -> Iterator[Finding]:
    """A worker is killed in the middle of a message; the supervisor must notice."""
    try:
        took_s = self_test_once()
    except ForgeLLMError as error:
        yield Finding("workers", "fail", error.message, "use a released CPython 3.11, 3.12 or 3.13")
    else:
        yield Finding("workers", "ok", f"a worker started, was killed, and was missed; {took_s * 1000:.0f} ms")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    python,
    mlx,
    blas,
    memory,
    limits,
    address,
    folders,
    api_keys,
    models,
    channel,
)


def _nearest(path: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
