"""`forgellm pair` and `forgellm keys pair`: two machines come to know each other. Prints a code once, and no key."""

import socket
from typing import TYPE_CHECKING, Any

import click
import msgspec

from forgellm.cli.options import config_option, json_option
from forgellm.config import load_settings
from forgellm.errors import ConfigError

if TYPE_CHECKING:
    from forgellm.control.machines import Machine


@click.command("pair")
@click.argument("address", metavar="HOST:PORT")
@click.argument("code", required=False)
@config_option
@json_option
def pair(address: str, code: str | None, config: str | None, *, as_json: bool) -> None:
    """Pair this machine with the daemon at HOST:PORT by the CODE that `forgellm keys pair` printed there."""
    from forgellm.control import pairing
    from forgellm.control.address import parse_place

    folder = load_settings(config).machines_path
    place = parse_place(address, folder)
    machine = pairing.pair(place, code or click.prompt("Pairing code", hide_input=True, err=True), folder)
    if as_json:
        click.echo(msgspec.json.encode(shown(machine)).decode())
        return
    click.echo(f"paired with {machine.name} ({machine.id}, sha256 {machine.fingerprint.hex()})")
    click.echo(f'now: forgellm web --connect {place}, or ModelManager("{place}")', err=True)


@click.command("pair")
@config_option
@json_option
def new_code(config: str | None, *, as_json: bool) -> None:
    """Print a code with which one other machine may be paired with the daemon here, within ten minutes."""
    from forgellm.control import certificate, machines

    settings = load_settings(config)
    if not settings.control_host:
        raise ConfigError(
            "the daemon listens for no other machine; set `control_host` to an address of this one, restart it, and "
            "ask again",
            field="control_host",
        )
    own = certificate.own(settings.machines_path)
    code = machines.new_code(settings.machines_path, own.fingerprint)
    host = socket.gethostname() if settings.control_host in {"0.0.0.0", "::"} else settings.control_host  # noqa: S104 - compared, not bound
    place = f"[{host}]:{settings.control_port}" if ":" in host else f"{host}:{settings.control_port}"
    if as_json:
        click.echo(msgspec.json.encode({"code": code, "address": place, "fingerprint": own.fingerprint.hex()}).decode())
        return
    click.echo(
        f"On the other machine, within {machines.CODE_LIFETIME_S / 60:g} minutes: forgellm pair {place} CODE", err=True
    )
    click.echo(code)


def shown(machine: "Machine") -> dict[str, Any]:
    """A machine as JSON has it, without what is secret."""
    return {
        "id": machine.id,
        "name": machine.name,
        "role": machine.role,
        "address": machine.address,
        "fingerprint": machine.fingerprint.hex(),
        "created": machine.created,
    }


def line(machine: "Machine") -> str:
    """A machine in a line for people."""
    what = "may use the daemon here" if machine.role == "client" else f"is used from here, at tls://{machine.address}"
    return f"{machine.id}  {machine.name}: a paired machine, {what}, sha256 {machine.fingerprint.hex()}"
