"""The leak check finds what it is there to find."""

import os
import subprocess
import sys
import threading

import pytest

import leaks


def test_the_leak_check_sees_a_process_a_thread_and_a_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail would let every leak through."""
    monkeypatch.setattr(leaks, "GRACE_S", 0.0)
    before = leaks.held()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-behind")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pipe = os.pipe()
    try:
        thread.start()
        found = "\n".join(leaks.leftovers(before))
        assert f"{process.pid} {sys.executable}" in found
        assert "left-behind" in found
        if sys.platform == "linux":
            assert f"{pipe[0]} pipe:" in found
    finally:
        stop.set()
        thread.join()
        process.communicate()
        for end in pipe:
            os.close(end)
    assert leaks.leftovers(before) == []
