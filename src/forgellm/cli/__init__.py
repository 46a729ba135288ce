"""The command line: `forgellm`. Talks to a daemon over HTTP; only `serve` and `run` may hold a supervisor."""

from forgellm.cli.commands import main
from forgellm.cli.operate import COMMANDS

for _command in COMMANDS:
    main.add_command(_command)

__all__ = ["main"]
