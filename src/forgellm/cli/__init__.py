"""The command line: `forgellm`. Talks to a daemon over HTTP; only `serve` and `run` may hold a supervisor."""

from forgellm.cli.commands import main
from forgellm.cli.fetch import COMMANDS as FETCHING
from forgellm.cli.operate import COMMANDS

for _command in (*COMMANDS, *FETCHING):
    main.add_command(_command)

__all__ = ["main"]
