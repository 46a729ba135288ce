"""The commands of an operator: what happens, what is written, what is wrong. Each imports what does it when it runs."""

import click
import msgspec

from forgellm.cli.options import client_options, config_option, path_or_name, tell
from forgellm.cli.pair import pair
from forgellm.cli.service import service


@click.command()
@client_options
def events(url: str | None, as_json: bool) -> None:
    """Follow what happens to models and workers, until Ctrl-C."""
    from forgellm.cli.client import Client
    from forgellm.cli.follow import event_text

    with Client(url) as client:
        for name, value in client.events("/api/events"):
            tell({"event": name, **value}, event_text(name, value), as_json=as_json)


@click.command()
@client_options
@click.argument("model", type=path_or_name)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, in later lives of the workers too.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, help="Lines from the end.")
def logs(url: str | None, as_json: bool, model: str, follow: bool, lines: int) -> None:
    """Print the logs of the workers of MODEL."""
    from forgellm.cli.client import Client
    from forgellm.cli.follow import log_lines

    is_empty = True
    with Client(url) as client:
        for worker, life, text in log_lines(lambda: client.get("/api/model/status"), model, lines, follow=follow):
            value = {"worker": worker, "life": life, "line": text}
            tell(value, f"{worker} | {text}", as_json=as_json)
            is_empty = False
    if is_empty:
        click.echo(
            f"the workers of {model} have printed nothing; what happened to them is in the daemon's log", err=True
        )


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print each finding as a line of JSON.")
@click.pass_context
def doctor(ctx: click.Context, config: str | None, as_json: bool) -> None:
    """Check this machine and the settings, and say what to do; exit code 1 if something will not work."""
    from forgellm.cli.checkup import examine
    from forgellm.config import load_settings

    has_failed = False
    for finding in examine(load_settings(config)):
        has_failed = has_failed or finding.level == "fail"
        remedy = f"\n      → {finding.remedy}" if finding.remedy else ""
        text = f"{finding.level:<5} {finding.check}: {finding.says}{remedy}"
        tell(msgspec.to_builtins(finding), text, as_json=as_json)
    ctx.exit(1 if has_failed else 0)


COMMANDS = (doctor, events, logs, pair, service)
