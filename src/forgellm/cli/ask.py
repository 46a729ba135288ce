"""`forgellm run`: one prompt, one answer on the terminal, through a daemon or a supervisor of its own. Nothing more."""

from collections.abc import Iterator
from typing import Any

import click
import msgspec

from forgellm.api.ndjson import counts
from forgellm.api.schemas import GenerateBody
from forgellm.api.status import status_body
from forgellm.cli.client import Client
from forgellm.cli.show import load_with_progress, watch_load
from forgellm.config import Settings
from forgellm.supervisor import Supervisor

Event = dict[str, Any]


def ask(
    settings: Settings, url: str | None, model: str, prompt: str, options: dict[str, Any], *, as_json: bool, stats: bool
) -> None:
    """Print the answer as it comes, or with `as_json` the whole of it as one object.

    `options` are fields of /api/model/generate. Raises the ForgeLLMError that prevented or ended it.
    """
    body = {"prompt": prompt, **{name: value for name, value in options.items() if value is not None}}
    checked = GenerateBody.decode(msgspec.json.encode(body), "application/json")
    with Client(url) as client:
        # An address that was given must answer; the default one may have no daemon.
        through_daemon = url is not None or client.answers()
        events = _from_daemon(client, model, body) if through_daemon else _from_here(settings, model, checked)
        _print(events, as_json=as_json, stats=stats)


def _from_daemon(client: Client, model: str, body: dict[str, Any]) -> Iterator[Event]:
    if not client.get("/api/model/status", model=model)["loaded"]:
        load_with_progress(client, {"model_name": model}, as_json=False)
    yield from client.generate({**body, "model": model})


def _from_here(settings: Settings, model: str, body: GenerateBody) -> Iterator[Event]:
    with Supervisor(settings) as pool:
        name = pool.load(model, wait=False).model
        watch_load(name, lambda: status_body(pool.status(), name))
        known = pool.status().model(name)
        request = body.to_request(name, known.system_prompt if known else None)
        with pool.submit(request) as generation:
            for token in generation:
                yield {"type": "chunk", "text": token.text}
            yield {"type": "complete", **counts(generation)}


def _print(events: Iterator[Event], *, as_json: bool, stats: bool) -> None:
    pieces: list[str] = []
    final: Event = {}
    for event in events:
        if event["type"] == "complete":
            final = {name: value for name, value in event.items() if name != "type"}
            continue
        pieces.append(event["text"])
        if not as_json:
            click.echo(event["text"], nl=False)
    if as_json:
        click.echo(msgspec.json.encode({"text": "".join(pieces), **final}).decode())
    else:
        click.echo()
    if stats:
        click.echo(pace(final), err=True)


def pace(final: Event) -> str:
    """The counts of a finished answer in one line."""
    return (
        f"{final['prompt_tokens']} prompt tokens at {final['prompt_tokens_per_sec']:.1f}/s, "
        f"{final['completion_tokens']} generated at {final['tokens_per_sec']:.1f}/s, "
        f"first after {final['time_to_first_token']:.2f} s"
    )
