"""A tiny helper process that kills what is left of the workers when the supervisor dies without a word.

It reads worker pids from a pipe and acts at its end. Linux's PDEATHSIG covers most deaths there; this covers the rest,
and macOS. Must import next to nothing: it is run as a file, isolated, and should cost a few MiB.
"""

import os
import signal
import sys


def main() -> None:
    """Read "+pid" and "-pid" lines; at EOF kill the groups still listed, unless "quit" came first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pids: set[int] = set()
    for line in sys.stdin:
        word = line.strip()
        if word == "quit":
            return
        if word.startswith("+"):
            pids.add(int(word[1:]))
        else:
            pids.discard(int(word[1:]))
    for pid in pids:
        for kill in (os.killpg, os.kill):  # the group first; the pid alone if it never got a group of its own
            try:
                kill(pid, signal.SIGKILL)
                break
            except ProcessLookupError:
                continue


if __name__ == "__main__":
    main()
