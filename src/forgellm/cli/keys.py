"""`forgellm keys`: API keys and paired machines. Prints a key once, when it is made, and never again."""

from pathlib import Path
from typing import get_args

import click
import msgspec

from forgellm import keys as store
from forgellm.cli.options import config_option, json_option
from forgellm.cli.pair import line, new_code, shown
from forgellm.config import load_settings
from forgellm.errors import NotFound
from forgellm.keys import Key, Scope
from forgellm.messages import LoadPolicy


@click.group()
def keys() -> None:
    """Create, list and revoke API keys and paired machines. A running daemon notices at once."""


keys.add_command(new_code)


@keys.command()
@click.option("--name", help="What to call it; the default is its id.")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(store.SCOPES),
    multiple=True,
    default=("infer",),
    show_default=True,
    help="What it is for; may be repeated.",
)
@click.option("--models", metavar="A,B", help="The only models it may use [any].")
@click.option("--rate", "rate_per_min", type=click.IntRange(min=1), help="Requests per minute [no limit].")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests answered at the same time [no limit].")
@click.option(
    "--load-policy",
    type=click.Choice(get_args(LoadPolicy)),
    help="Whether its requests have models loaded, or use only what is loaded [as the settings say].",
)
@config_option
@json_option
def create(
    *,
    name: str | None,
    scopes: tuple[Scope, ...],
    models: str | None,
    rate_per_min: int | None,
    concurrency: int | None,
    load_policy: LoadPolicy | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Make a new key and print it, this once."""
    listed = None if models is None else [model.strip() for model in models.split(",") if model.strip()]
    key, secret = store.create(
        _path(config),
        name=name,
        scopes=scopes,
        models=listed,
        rate_per_min=rate_per_min,
        concurrency=concurrency,
        load_policy=load_policy,
    )
    if as_json:
        click.echo(msgspec.json.encode({"key": secret, **_shown(key)}).decode())
        return
    click.echo(f"{key.name} ({key.id}): {_terms(key)}. Keep the key; it is not shown again:", err=True)
    click.echo(secret)


@keys.command("list")
@config_option
@json_option
def list_keys(config: str | None, as_json: bool) -> None:
    """List the keys, without themselves, and the machines."""
    from forgellm.control import machines

    ring = store.read(_path(config))
    paired = machines.read(load_settings(config).machines_path)
    found = ring.keys if ring else ()
    if as_json:
        click.echo(msgspec.json.encode([*map(_shown, found), *map(shown, paired)]).decode())
        return
    for machine in paired:
        click.echo(line(machine))
    for key in found:
        click.echo(f"{key.id}  {key.name}: {_terms(key)}")
    if not found:
        click.echo("there is no key, and none is needed" if ring is None else "there is no key: nobody is let in")


@keys.command()
@click.argument("key", metavar="ID|NAME")
@config_option
@json_option
def revoke(key: str, config: str | None, as_json: bool) -> None:
    """Take a key or a machine away. What it is being answered right now is answered to the end."""
    from forgellm.control import machines

    path = _path(config)
    try:
        gone = store.revoke(path, key)
    except NotFound:
        machine = machines.remove(load_settings(config).machines_path, key)
        click.echo(msgspec.json.encode(shown(machine)).decode() if as_json else f"{line(machine)}: revoked")
        return
    if as_json:
        click.echo(msgspec.json.encode(_shown(gone)).decode())
        return
    click.echo(f"{gone.name} ({gone.id}) is revoked")
    ring = store.read(path)
    if ring is not None and not ring.keys:
        click.echo(f"That was the last one: nobody is let in now. To serve without keys, remove {path}", err=True)


def _path(config: str | None) -> Path:
    return load_settings(config).keys_path


def _shown(key: Key) -> dict[str, object]:
    return {name: value for name, value in msgspec.to_builtins(key).items() if name != "sha256"}


def _terms(key: Key) -> str:
    """What the key may do, in words."""
    parts = [" ".join(key.scopes), "any model" if key.models is None else f"only {', '.join(key.models)}"]
    if key.rate_per_min is not None:
        parts.append(f"{key.rate_per_min} requests a minute")
    if key.concurrency is not None:
        parts.append(f"{key.concurrency} at a time")
    if key.load_policy is not None:
        parts.append("only what is loaded" if key.load_policy == "preloaded" else "loads on demand")
    return ", ".join(parts)
