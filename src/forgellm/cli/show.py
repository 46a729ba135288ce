"""Bars and tables of the command line. Draws what it is given, and polls a load that it draws; decides nothing."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from forgellm import catalog
from forgellm.api.catalog import entry_body
from forgellm.cli.client import Client
from forgellm.config import Settings
from forgellm.errors import ForgeLLMError, ModelNotLoaded, from_wire
from forgellm.supervisor.budget import size

if TYPE_CHECKING:
    from forgellm.catalog.hub_search import Remote

POLL_S = 0.1

Status = dict[str, Any]


def load_with_progress(client: Client, body: dict[str, Any], *, as_json: bool) -> Status:
    """Load a model in the daemon behind a bar on stderr; returns its status. Raises the error that ended the load."""
    answer = client.post("/api/model/load", body)
    name = answer["model_name"]
    status = watch_load(name, lambda: client.get("/api/model/status", model=name), quiet=as_json)
    if as_json:
        click.echo(msgspec.json.encode(status).decode())
    else:
        click.echo(f"{name} is ready: process {status['pid']}, {size(status['memory']['footprint'])}", err=True)
        for warning in status.get("warnings", ()):
            click.echo(f"warning: {warning}", err=True)
    return status


def watch_load(name: str, status_of: Callable[[], Status], *, quiet: bool = False) -> Status:
    """Draw the progress of a load until it is ready. Raises the error that ended it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task(name, total=1.0)
        while True:
            status = status_of()
            if status["loaded"]:
                return status
            if not status["is_loading"]:
                raise _why_not(name, status)
            stage = status["stage"] or status["state"]
            progress.update(task, completed=status["progress"], description=f"{name}: {stage}")
            time.sleep(POLL_S)


def show_workers(status: Status) -> None:
    """The table of `forgellm ps`."""
    table = Table(
        "MODEL", "STATE", "PID", "LIFE", "RESTARTS", "MEMORY", "RUNNING", "QUEUED", "SINCE", box=None, pad_edge=False
    )
    now = time.time()
    for model in status["models"]:
        for worker in model["workers"]:
            table.add_row(
                worker["name"],
                worker["state"] + (", drained" if model["draining"] else ""),
                str(worker["pid"] or "-"),
                str(worker["life"]),
                str(worker["restarts"]),
                size(worker["memory"]["footprint"]),
                str(worker["in_flight"]),
                str(model["queue_depth"]),
                f"{max(0.0, now - worker['since']):.0f} s",
            )
        if outdated := [line for line in model.get("warnings", ()) if line.startswith("outdated")]:
            table.add_row("", Text(outdated[0], "yellow"))
        if model.get("error"):
            table.add_row("", Text(model["error"], "red"))
    if status.get("is_draining"):
        click.echo("drained: nothing is let in until `forgellm drain --resume`", err=True)
    if not status["models"]:
        click.echo("no model is loaded")
        return
    Console().print(table)


def plan_text(plan: dict[str, Any]) -> str:
    """What `forgellm load --dry-run` prints."""
    need = plan["need_bytes"]
    parts = ", ".join(f"{name} {size(need[name])}" for name in ("weights", "kv", "runtime", "transient"))
    budget = size(plan["budget_bytes"]) if plan["budget_bytes"] is not None else "no limit"
    lines = [
        f"{plan['model_name']} needs {size(need['total'])} ({parts})",
        f"budget {budget}, of which {size(plan['reserved_bytes'])} are reserved",
    ]
    if plan["would_evict"]:
        lines.append(f"it fits once these are unloaded: {', '.join(plan['would_evict'])}")
    else:
        lines.append("it fits" if plan["fits"] else f"it does not fit: {plan['reason']}")
    return "\n".join(lines)


def show_models(found: list[dict[str, Any]]) -> None:
    """The table of `forgellm models`."""
    table = _folding("NAME", "TYPE", "SIZE", "SHA256", "PATH")
    for model in found:
        known = {"verified": "known"}.get(model["integrity"], model["integrity"])
        table.add_row(model["id"], model["type"], f"{model['size']:.2f} GB", known, model["path"] or "")
    Console().print(table)


def show_remote(found: "list[Remote]") -> None:
    """The table of `forgellm models --remote`."""
    table = _folding("NAME", "DOWNLOADS", "LIKES", "")
    for each in found:
        words = [word for word, holds in (("mlx", each.is_mlx), ("gated", each.is_gated)) if holds]
        table.add_row(each.id, f"{each.downloads:,}", f"{each.likes:,}", ", ".join(words))
    Console().print(table)


def _folding(*titles: str) -> Table:
    """A table whose cells go on in the next line where they are too long: names and paths are for copying."""
    return Table(*(Column(title, overflow="fold") for title in titles), box=None, pad_edge=False)


def local_models(settings: Settings) -> list[dict[str, Any]]:
    """The catalog as /api/models has it, without a daemon."""
    return [entry_body(entry) for entry in catalog.entries(settings)]


def _why_not(name: str, status: Status) -> ForgeLLMError:
    if status.get("error"):
        return from_wire(status.get("error_code") or "", status["error"])
    return ModelNotLoaded(f"{name} was unloaded while it was being loaded")


def reload_text(plan: dict[str, Any]) -> str:
    """A reload's plan, a line for each kind of change."""
    changed = [f"{name} ({', '.join(fields)})" for name, fields in plan["changed"].items()]
    words = {
        "added": "added",
        "removed": "removed",
        "loaded": "loading",
        "replaced": "loaded, and replaced while serving",
        "unloaded": "unloaded once idle",
        "at_once": "settings in effect",
        "after_restart": "settings that wait for a restart",
    }
    lines = [f"changed: {', '.join(changed)}"] if changed else []
    lines += [f"{said}: {', '.join(plan[name])}" for name, said in words.items() if plan[name]]
    return "\n".join([plan["message"], *(lines or ["nothing differs"])])
