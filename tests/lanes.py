"""Runs the whole suite in lanes at once: most tests wait for processes, so two cores carry them. Tests nothing.

`python tests/lanes.py [pytest options]`; the exit code is 0 if all lanes are green. Ctrl-C reaches all, for they are
of the same terminal.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

WORKERS = ("tests/supervisor", "tests/chaos")
WAITING = tuple(
    f"tests/{each}.py"
    for each in ("test_selftest", "e2e/test_otel", "e2e/test_daemon_process", "e2e/test_pull", "e2e/test_refusals")
)
COMPUTING = ("tests/worker",)
REST = tuple(f"--ignore={path}" for path in (*WORKERS, *WAITING, *COMPUTING))
LANES = {"workers": WORKERS, "the rest": REST, "mostly asleep": WAITING, "computing": COMPUTING}
# It gives way, for the others have limits of a second. Not by more: it has limits too (hypothesis's 200 ms an example),
# and met them at 15, a thirtieth of the others' share, beside one busy process.
NICE = {"computing": ("nice", "-n", "5")}
NO_TESTS = 5  # pytest's code for a lane that the options left none; not all lanes may be so
DEADLINE_S = 80 * 60.0  # ends a lane that hangs; each test has a timeout of its own


@contextlib.contextmanager
def lane(name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """pytest with its output kept until the end, because two at once cannot be read."""
    with tempfile.TemporaryFile() as log:
        command = [*NICE.get(name, ()), sys.executable, "-m", "pytest", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        started = time.monotonic()
        try:
            yield process
            process.wait(DEADLINE_S)
        except BaseException:  # it goes on up; but no lane may outlive it
            process.terminate()
            process.wait(60)
            raise
        finally:
            log.seek(0)
            print(
                f"\n== {name}: {time.monotonic() - started:.0f} s ==\n{log.read().decode(errors='replace')}", flush=True
            )


def main(options: Sequence[str]) -> int:
    with contextlib.ExitStack() as stack:
        lanes = [stack.enter_context(lane(name, *options, *paths)) for name, paths in LANES.items()]
    codes = [each.returncode for each in lanes]
    return int(any(code not in (0, NO_TESTS) for code in codes) or set(codes) == {NO_TESTS})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
