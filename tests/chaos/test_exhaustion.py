"""A daemon that has run out of something: connections, descriptors, processes, or of a clock that can be trusted."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from daemons import Daemon, daemon
from invariants import BYSTANDER, sound_daemon

pytestmark = [pytest.mark.process, pytest.mark.chaos]

ECHO = '[models.e]\nsource = "echo"\npreload = true\n'
OTHER = '[models.other]\nsource = "echo"\n'
CROWD = 9900  # the server has room for 9,984 connections
FILES = 340  # more, of its own and of its places
MAX_STREAMS = 128
MAX_BATCH = 32
PRLIMIT = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="this system cannot limit another process")


def ask(served: Daemon, model: str = "e", **more: Any) -> httpx2.Response:
    return served.http.post("/api/model/generate", json={"model": model, "prompt": "one two", **more})


def wait_until_loaded(served: Daemon, model: str = "e") -> dict[str, Any]:
    answer = served.http.post("/api/model/load", json={"model": model, "wait": True})
    assert answer.status_code == 200, answer.text
    return dict(served.http.get("/api/model/status", params={"model": model}).json())


@contextmanager
def few_files(pid: int, soft: int) -> Iterator[None]:
    """The daemon may have no descriptor above that until the block ends."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# 69: more connections than it serves ---------------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[int]:
    """This process, and those it starts, may have as many descriptors as a crowd takes, or as there can be; how many.

    Importing mlx_lm lowers the hard limit of the process of the tests, which only root may raise again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + FILES
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if found < 2000 + FILES:
        pytest.skip(f"this machine allows a process {found} descriptors: no crowd")
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def crowd(served: Daemon, count: int, places: int) -> Iterator[dict[str, float]]:
    """So many clients at once: what they saw. They stay until the block ends."""
    host, port = served.url.removeprefix("http://").split(":")
    command = [sys.executable, str(Path(__file__).parents[1] / "crowd.py"), host, port, str(count), str(places)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdout is not None
        line = clients.stdout.readline()
        yield json.loads(line)


@pytest.mark.alone  # it takes both cores for ten seconds, and what is beside it has limits too
def test_chaos_069_thousands_of_connections_are_served_queued_or_refused_at_once(
    tmp_path: Path, many_files: int
) -> None:
    """All ask in the same moment; then up to four at a time, for the measure.

    Two more places are the bystander's and its follower's.
    """
    count = min(CROWD, many_files - FILES)
    limits = f"max_streams = {MAX_STREAMS + 2}\nmax_batch = {MAX_BATCH}\n"
    with daemon(tmp_path, limits + ECHO + "options = {tokens_per_s = 20.0}\n" + BYSTANDER) as served:
        wait_until_loaded(served)
        with sound_daemon(served):
            before = psutil.Process(served.process.pid).memory_info().rss
            with crowd(served, count, MAX_STREAMS) as found:
                status = served.http.get("/api/model/status", params={"model": "e"}).json()
                found["rss_bytes"] = psutil.Process(served.process.pid).memory_info().rss - before
            ended = time.monotonic()
            while ask(served).status_code != 200:
                assert time.monotonic() - ended < 5
            print(found)
            assert time.monotonic() - ended < 5
        assert (status["in_flight"], status["queue_depth"]) == (MAX_BATCH, MAX_STREAMS - MAX_BATCH)
        assert found["refused"] == count - MAX_STREAMS
        assert found["p50_s"] < 0.05
        assert found["burst_s"] < 30
        assert found["rss_bytes"] < 100 << 20


# 76: a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_chaos_076_a_disk_that_takes_no_log_costs_no_worker_and_no_answer(tmp_path: Path) -> None:
    """What workers print is lost; they load, answer, die and come back as ever."""
    toml = ECHO.replace("preload = true", f'options = {{print_at_load = "{"loud " * 2000}"}}')
    with daemon(tmp_path, "spare = false\n" + toml + BYSTANDER) as served:
        stem = served.http.get("/api/model/status").json()["log_stem"]
        for life in range(1, 6):
            Path(f"{stem}{life}.log").symlink_to("/dev/full")
        pid = wait_until_loaded(served)["pid"]
        with sound_daemon(served):
            assert ask(served).json()["text"] == "one two"
            os.kill(pid, signal.SIGKILL)
            assert ask(served).json()["text"] == "one two"
        assert served.http.get("/api/model/status", params={"model": "e"}).json()["restarts"] == 1
        assert served.stop() == 0


# 78, 79: descriptors, processes --------------------------------------------------------------------------------------


@PRLIMIT
def test_chaos_078_without_descriptors_connections_and_loads_get_503_until_there_are_some_again(tmp_path: Path) -> None:
    with daemon(tmp_path, "spare = false\n" + ECHO + OTHER + BYSTANDER) as served:
        wait_until_loaded(served)
        pid = served.process.pid
        with sound_daemon(served, turns_away=True):
            highest = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
            held: list[httpx2.Client] = []
            with few_files(pid, highest + 1):
                for _ in range(64):  # the gaps below the highest one fill up first
                    held.append(httpx2.Client(base_url=served.url, timeout=5, trust_env=False))
                    answer = held[-1].get("/healthz")
                    if answer.status_code != 200:
                        break
                assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
                assert answer.headers["Retry-After"] == "1"
                load = served.http.post("/api/model/load", json={"model": "other", "wait": True})
                assert load.status_code == 503, load.text
                assert ask(served).json()["text"] == "one two"
            for client in held:
                client.close()
            wait_until_loaded(served, "other")
            assert ask(served, "other").json()["text"] == "one two"
            assert served.http.post("/api/model/unload", json={"model": "other"}).status_code == 200


AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
READS_ALL = ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
"""Python itself may lie in a folder of root's; what frees root from the limit are other capabilities."""


@contextmanager
def no_processes(pid: int, nobody: list[str]) -> Iterator[None]:
    """Not one more for the daemon's user, whoever set the limit being that user."""
    before = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    back = "unlimited" if before == resource.RLIM_INFINITY else before
    subprocess.run([*nobody, "prlimit", f"--pid={pid}", "--nproc=1:"], check=True)
    try:
        yield
    finally:
        subprocess.run([*nobody, "prlimit", f"--pid={pid}", f"--nproc={back}:"], check=True)


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """pytest's own folders are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="forgellm-"))
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


@PRLIMIT
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS counts processes otherwise")
def test_chaos_079_without_processes_a_load_gets_503_and_the_service_lives(nobodys_folder: Path) -> None:
    """The limit is a user's, and root has none: there, the daemon is nobody's."""
    if not shutil.which("prlimit") or not shutil.which("setpriv"):
        pytest.skip("this machine has no prlimit and setpriv (util-linux), for a user's limits that root does not have")
    env = ["env", f"HOME={nobodys_folder}", f"XDG_CONFIG_HOME={nobodys_folder}"]
    nobody = [*AS_NOBODY, *READS_ALL] if os.getuid() == 0 else []
    start = [*env, *nobody, sys.executable, "-m", "forgellm.daemon"]
    with daemon(nobodys_folder, "spare = false\n" + ECHO + OTHER + BYSTANDER, start=start) as served:
        wait_until_loaded(served)
        with sound_daemon(served):
            with no_processes(served.process.pid, nobody):
                load = served.http.post("/api/model/load", json={"model": "other", "wait": True})
                assert (load.status_code, load.json()["code"]) == (503, "worker_died")
                assert "no process could be started" in load.json()["error"]
                assert ask(served).json()["text"] == "one two"
            wait_until_loaded(served, "other")
            assert ask(served, "other").json()["text"] == "one two"
            assert served.http.post("/api/model/unload", json={"model": "other"}).status_code == 200


# 80: the wall clock --------------------------------------------------------------------------------------------------

MOVED_CLOCK = """
import os, time
_time = time.time
_clock = os.environ["TEST_CLOCK"]
time.time = lambda: _time() + os.stat(_clock).st_mtime - 1_000_000_000
"""
DAY_S = 86_400


def test_chaos_080_a_clock_that_jumps_a_day_ends_nothing_early_or_late(tmp_path: Path) -> None:
    """Only the times that are shown move."""
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(MOVED_CLOCK)

    def move(seconds: float) -> None:
        os.utime(clock, (1_000_000_000 + seconds,) * 2)

    move(0)
    paths = os.pathsep.join([str(clock), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = ["env", f"PYTHONPATH={paths}", f"TEST_CLOCK={clock}", sys.executable, "-m", "forgellm.daemon"]
    short = '[models.short]\nsource = "echo"\nttl_s = 1.5\n'
    slow = '[models.slow]\nsource = "echo"\npreload = true\noptions = {tokens_per_s = 20.0}\n'
    with daemon(tmp_path, ECHO + short + slow + BYSTANDER, start=start) as served:
        wait_until_loaded(served)
        before = wait_until_loaded(served, "slow")
        idle = httpx2.Client(base_url=served.url, timeout=5, trust_env=False)
        with sound_daemon(served), idle:
            idle.get("/healthz")
            body = {"model": "slow", "prompt": " ".join(map(str, range(60))), "max_tokens": 60, "stream": True}
            gaps, days, text, last = [], [DAY_S, -DAY_S, 0], "", time.monotonic()
            with served.http.stream("POST", "/api/model/generate", json=body) as response:
                for number, line in enumerate(response.iter_lines()):
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    text += json.loads(line).get("text", "")
                    if number and number % 15 == 0 and days:
                        move(days.pop(0))
            assert text == body["prompt"]
            assert max(gaps) < 1
            for days_off in (1, -1):
                move(days_off * DAY_S)
                loaded = time.monotonic()
                wait_until_loaded(served, "short")
                began = time.monotonic()
                late = ask(served, "slow", prompt=body["prompt"], timeout_s=0.5)
                assert late.status_code == 504, late.text
                assert 0.4 < time.monotonic() - began < 1.5
                while served.http.get("/api/model/info", params={"model": "short"}).json()["loaded"]:
                    assert time.monotonic() - began < 4
                assert time.monotonic() - loaded > 1.4
                after = served.http.get("/api/model/status", params={"model": "slow"}).json()
                assert abs(after["since"] - before["since"] - days_off * DAY_S) < 5
                assert (after["pid"], after["restarts"]) == (before["pid"], 0)
            assert idle.get("/healthz").status_code == 200
        assert served.stop(signal.SIGTERM) == 0
