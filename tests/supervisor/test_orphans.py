"""What is left of the workers when the supervisor's own process dies, however it dies; and where it may be started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pools import wait_until

pytestmark = pytest.mark.process

SCRIPT = """
import sys
from forgellm import ModelConfig, Settings, Supervisor
settings = Settings(models={{"e": ModelConfig(source="echo", options={options})}}, cache_dir={cache!r})
pool = Supervisor(settings).start()
pool.load("e")
print("answer:", pool.generate("e", "one two three").result().text, flush=True)
{end}
"""


def script(tmp_path: Path, end: str = "pool.stop()", **options: object) -> str:
    return SCRIPT.format(options=options, cache=str(tmp_path / "cache"), end=end)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with a supervisor that streams for ever."""
    end = "for token in pool.generate('e', 'w ' * 10**6): pass"
    code = script(tmp_path, end, tokens_per_s=100.0)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "answer: one two three\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_chaos_038_a_killed_supervisor_leaves_no_worker_and_no_guardian(endless: "subprocess.Popen[str]") -> None:
    family = descendants(endless.pid)
    assert len(family) >= 3  # worker, spare, guardian
    os.kill(endless.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(process) for process in family), timeout_s=5)


def test_chaos_038_a_stopped_worker_dies_with_a_killed_supervisor(endless: "subprocess.Popen[str]") -> None:
    """A worker under SIGSTOP reads no EOF; the guardian, or the system, must kill it."""
    family = descendants(endless.pid)
    workers = [process for process in family if "guardian" not in " ".join(process.cmdline())]
    for process in workers:
        if "resource_tracker" not in " ".join(process.cmdline()):
            process.suspend()
    os.kill(endless.pid, signal.SIGKILL)
    wait_until(lambda: all(is_gone(process) for process in workers), timeout_s=5)


def test_chaos_042_a_killed_guardian_is_replaced_within_seconds(endless: "subprocess.Popen[str]") -> None:
    def guardians() -> list[psutil.Process]:
        living = [process for process in descendants(endless.pid) if not is_gone(process)]
        return [process for process in living if "guardian.py" in " ".join(process.cmdline())]

    (old,) = guardians()
    old.kill()
    wait_until(lambda: any(new.pid != old.pid for new in guardians()), timeout_s=5)


def test_the_guardian_alone_kills_what_is_left(tmp_path: Path) -> None:
    """As on macOS, where nothing like PDEATHSIG exists."""
    from forgellm.supervisor import guardian

    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]  # until it is killed, or this process is gone
    victim = subprocess.Popen(waits, stdin=subprocess.PIPE, start_new_session=True)
    spared = subprocess.Popen(waits, stdin=subprocess.PIPE, start_new_session=True)
    command = [sys.executable, "-I", "-S", guardian.__file__]
    try:
        listing = f"+{victim.pid}\n+{spared.pid}\n-{spared.pid}\n"
        subprocess.run(command, input=listing, text=True, timeout=10, check=True)
        assert victim.wait(5) == -signal.SIGKILL
        subprocess.run(command, input=f"+{spared.pid}\nquit\n", text=True, timeout=10, check=True)
        assert spared.poll() is None
    finally:
        for process in (victim, spared):
            process.kill()
            process.communicate(timeout=5)


def test_chaos_093_it_works_in_python_c_on_stdin_and_in_a_script_without_a_main_guard(tmp_path: Path) -> None:
    code = script(tmp_path)
    file = tmp_path / "script.py"
    file.write_text(code)
    for command, stdin in (
        ([sys.executable, "-c", code], ""),
        ([sys.executable, "-"], code),
        ([sys.executable, file], ""),
    ):
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("answer: one two three\n", "", 0)


def test_a_script_that_forgets_to_stop_still_ends_clean(tmp_path: Path) -> None:
    code = script(tmp_path, end="import psutil; print([p.pid for p in psutil.Process().children(recursive=True)])")
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pids = [int(word) for word in done.stdout.splitlines()[1].strip("[]").split(",")]
    assert time.monotonic() - started < 30
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), timeout_s=5)


def test_chaos_093_a_worker_holds_neither_flask_nor_the_supervisor_nor_the_callers_main(tmp_path: Path) -> None:
    """Its engine's libraries are all that a worker pays for."""
    file = tmp_path / "main.py"
    file.write_text("import flask, sys\nsys.stderr.write('imported main\\n')\n" + script(tmp_path, modules_to_log=True))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "imported main\n"  # once, not once more in each worker
    (line,) = [
        line
        for log in (tmp_path / "cache" / "logs").glob("*.log")
        for line in log.read_text().splitlines()
        if line.startswith("modules:")
    ]
    modules = line.removeprefix("modules:").split()
    assert "forgellm.worker.echo" in modules
    assert not {"flask", "waitress", "mlx", "forgellm.supervisor", "forgellm.api"} & set(modules)
