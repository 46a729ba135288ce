"""The options that several commands have, and how a command tells its outcome. Does no command's work."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

KEY_FILE = "forgellm.api_key_file"
"""Where the option --api-key-file of the running command is, in its click context."""

Command = Callable[..., Any]

config_option = click.option("--config", type=click.Path(dir_okay=False), help="Settings file (TOML).")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")


def _remember_key_file(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    ctx.meta[KEY_FILE] = path


_key_file_option = click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False),
    envvar="FORGELLM_API_KEY_FILE",
    expose_value=False,
    callback=_remember_key_file,
    help="File with the daemon's API key [the variable FORGELLM_API_KEY].",
)
_url_option = click.option("--url", envvar="FORGELLM_URL", help="The daemon's address [http://127.0.0.1:5001].")


def client_options(command: Command) -> Command:
    """Those of a command that asks a daemon: where it is, the key, and how to print."""
    return _url_option(json_option(_key_file_option(command)))


def path_or_name(value: str) -> str:
    """A model or adapter. A path must reach the daemon, which runs in another folder, as an absolute one."""
    path = Path(value).expanduser()
    looks_like_a_path = value.startswith((".", "~")) or (os.sep in value and path.exists())
    return str(path.resolve()) if looks_like_a_path else value


def tell(value: Any, text: str, *, as_json: bool) -> None:
    """Print an outcome: `value` as a line of JSON, or `text` for people."""
    click.echo(msgspec.json.encode(value).decode() if as_json else text)
