"""The commands for models on the disk: pull, rm, show. Each imports what does it when it runs."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from forgellm.cli.options import client_options, config_option, json_option, path_or_name, tell
from forgellm.errors import Unavailable, from_wire

if TYPE_CHECKING:
    from forgellm.cli.client import Client

POLL_S = 0.2

Job = dict[str, Any]


@click.command()
@client_options
@click.argument("model", metavar="ORG/NAME[@REVISION]")
def pull(url: str | None, as_json: bool, model: str) -> None:
    """Fetch a model from the Hugging Face Hub: through the daemon if one answers, else in this process.

    Ctrl-C cancels; the next pull goes on from there."""
    from forgellm.catalog import Downloads
    from forgellm.cli.client import Client

    with Client(url) as client:
        if client.answers():
            job = _follow(_through(client), model, as_json=as_json)
        else:
            downloads = Downloads()
            try:
                job = _follow(_in_this_process(downloads), model, as_json=as_json)
            finally:
                downloads.close()
    if job["state"] == "failed":
        raise from_wire(job["error_code"] or "", job["error"] or "the pull failed")
    if job["state"] == "cancelled":
        raise Unavailable(f"the pull of {model} was cancelled; what came is kept for the next one")
    size = job["total_bytes"] or 0
    tell(job, f"{job['model']} is here ({size / 1e6:.0f} MB): {job['path']}", as_json=as_json)


@click.command()
@client_options
@click.argument("model", metavar="ORG/NAME")
def rm(url: str | None, as_json: bool, model: str) -> None:
    """Remove a model from the Hugging Face cache, all its revisions."""
    from forgellm.catalog import Downloads
    from forgellm.cli.client import Client

    with Client(url) as client:
        if client.answers():
            removed = client.delete(f"/api/models/{quote(model)}")  # else `?` would end the name
        else:
            removed = msgspec.to_builtins(Downloads().remove(model))
    tell(removed, f"{model} is removed ({removed['freed_bytes'] / 1e6:.0f} MB freed)", as_json=as_json)


@click.command()
@config_option
@json_option
@click.argument("model", type=path_or_name)
def show(config: str | None, as_json: bool, model: str) -> None:
    """Say what MODEL is, by its files on this machine; exit code 1 if it could not be loaded."""
    from forgellm.catalog import resolve
    from forgellm.config import load_settings

    settings = load_settings(config)
    found = msgspec.to_builtins(resolve(settings.model_name(model), settings))
    rows = [("name", model), *((name, found[name]) for name in ("kind", "task", "path", "adapter_path"))]
    rows += [(name, f"{found[name]:,}") for name in ("parameters", "weights_bytes", "kv_bytes_per_token")]
    tell(found, "\n".join(f"{name:<20}{value}" for name, value in rows if value is not None), as_json=as_json)


class _Jobs:
    """Where a pull runs: how to begin it, to ask about it, and to end it."""

    def __init__(
        self, begin: Callable[[str], Job], look: Callable[[str], Job], cancel: Callable[[str], object]
    ) -> None:
        self.begin, self.look, self.cancel = begin, look, cancel


def _through(client: "Client") -> _Jobs:
    return _Jobs(
        lambda model: client.post("/api/models/pull", {"model": model})["job"],
        lambda job_id: client.get(f"/api/jobs/{job_id}")["job"],
        lambda job_id: client.delete(f"/api/jobs/{job_id}"),
    )


def _in_this_process(downloads: Any) -> _Jobs:
    return _Jobs(
        lambda model: msgspec.to_builtins(downloads.pull(model)),
        lambda job_id: msgspec.to_builtins(downloads.job(job_id)),
        downloads.cancel,
    )


def _follow(jobs: _Jobs, model: str, *, as_json: bool) -> Job:
    """The job once it has ended, behind one line on stderr until then. Ctrl-C cancels it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from forgellm.catalog.downloads import ENDED

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=as_json) as progress:
        job = jobs.begin(model)
        task = progress.add_task(job["model"], total=None)
        try:
            while job["state"] not in ENDED:
                time.sleep(POLL_S)
                job = jobs.look(job["id"])
                progress.update(task, total=job["total_bytes"], completed=job["done_bytes"], description=_line(job))
        except KeyboardInterrupt:
            jobs.cancel(job["id"])
            job = {**job, "state": "cancelled"}
    return job


def _line(job: Job) -> str:
    return f"{job['model']}: {job['stage'] or job['state']}"


COMMANDS = (pull, rm, show)
