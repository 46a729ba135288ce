"""The command line: `forgellm`. Talks to a daemon over HTTP; only `serve` and `run` may hold a supervisor."""

from forgellm.cli.commands import main

__all__ = ["main"]
