"""The commands and their options. Does no work itself: each command imports what does it when it runs.

That keeps `serve` free of the HTTP client and of rich, and `--help` quick.
"""

import os
import sys
from typing import Any, NoReturn

import click
import msgspec

from forgellm.cli.keys import keys
from forgellm.cli.options import client_options, config_option, path_or_name, tell
from forgellm.config import Settings, json_schema, load_settings
from forgellm.errors import ForgeLLMError


class _Group(click.Group):
    """Turns the program's own errors into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ForgeLLMError as error:
            _fail(error)


def _fail(error: ForgeLLMError) -> NoReturn:
    from forgellm.daemon import exit_code

    click.echo(f"Error: {error.message}", err=True)
    raise click.exceptions.Exit(exit_code(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forgellm", prog_name="forgellm")
def main() -> None:
    """Serve MLX language models, each in a supervised process of its own."""


@main.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@config_option
@click.option(
    "--model",
    "models",
    type=path_or_name,
    multiple=True,
    metavar="NAME",
    help="Load this model at start; may be repeated.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--json", "as_json", is_flag=True, help="Tell the address as a line of JSON.")
@click.pass_context
def serve(
    ctx: click.Context, /, config: str | None, models: tuple[str, ...], as_json: bool, **flags: str | int | None
) -> None:
    """Run the daemon in the foreground."""
    from forgellm import daemon

    def read() -> Settings:
        return load_settings(config, flags=flags)

    try:
        settings = read()
    except ForgeLLMError as error:
        _fail(error)

    ctx.exit(daemon.run(settings, models, on_ready=lambda url: _tell_ready(url, as_json), reread=read))


@main.command()
@click.option("--connect", metavar="ADDRESS", help="The daemon: unix:///path/control.sock, tls://host:port.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.")
@config_option
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--json", "as_json", is_flag=True, help="Tell the address as a line of JSON.")
@click.pass_context
def web(
    ctx: click.Context, /, connect: str | None, config: str | None, as_json: bool, **flags: str | int | None
) -> None:
    """Run a web server for a daemon that runs elsewhere, in the foreground."""
    from forgellm import web

    ctx.exit(web.run(load_settings(config, flags=flags), connect, on_ready=lambda url: _tell_ready(url, as_json)))


@main.command()
@client_options
@config_option
@click.argument("model", type=path_or_name)
@click.argument("prompt")
@click.option("--system", "system_prompt", help="System prompt.")
@click.option("--max-tokens", type=int, default=512, show_default=True)
@click.option("--temperature", type=float, help="0 is greedy.")
@click.option("--top-p", type=float)
@click.option("--seed", type=int)
@click.option("--stop", multiple=True, help="Ends the answer; may be repeated.")
@click.option("--stats", is_flag=True, help="Print tokens and times to stderr.")
def run(
    model: str, prompt: str, *, url: str | None, as_json: bool, config: str | None, stats: bool, **options: Any
) -> None:
    """Answer PROMPT ("-" reads it from stdin) with MODEL: through the daemon if one answers, else in this process."""
    from forgellm.cli.ask import ask

    text = sys.stdin.read() if prompt == "-" else prompt
    options["stop"] = list(options["stop"])
    ask(load_settings(config), url, model, text, options, as_json=as_json, stats=stats)


@main.command()
@client_options
@click.argument("model", type=path_or_name)
@click.option("--adapter", "adapter_path", type=path_or_name, help="LoRA adapter: a folder, or a *.safetensors in it.")
@click.option("--system", "system_prompt", help="Default system prompt of this model.")
@click.option("--replicas", type=int)
@click.option("--ttl", "ttl_s", type=float, help="Unload after so many idle seconds.")
@click.option("--pin/--no-pin", default=None, help="Never unload it for being idle.")
@click.option("--context-length", type=int, help="Longest prompt and answer, tokens.")
@click.option("--max-kv-size", type=int, help="Cap of each request's KV cache, tokens.")
@click.option("--dry-run", is_flag=True, help="Load nothing; say what it would need, and which models would go.")
@click.pass_context
def load(ctx: click.Context, /, url: str | None, as_json: bool, model: str, dry_run: bool, **options: Any) -> None:
    """Load MODEL in the daemon."""
    from forgellm.cli.client import Client
    from forgellm.cli.show import load_with_progress, plan_text

    body = {"model_name": model, **options}
    with Client(url) as client:
        if not dry_run:
            load_with_progress(client, body, as_json=as_json)
            return
        plan = client.post("/api/model/plan", body)
    tell(plan, plan_text(plan), as_json=as_json)
    ctx.exit(0 if plan["fits"] else 1)


@main.command()
@client_options
@click.argument("model", type=path_or_name, required=False)
@click.option("--force", is_flag=True, help="Abort what runs instead of letting it finish.")
def unload(url: str | None, as_json: bool, model: str | None, force: bool) -> None:
    """Unload MODEL (default: the one loaded last) and wait until its memory is back."""
    from forgellm.cli.client import Client
    from forgellm.supervisor.budget import size

    with Client(url) as client:
        answer = client.post("/api/model/unload", {"model_name": model, "force": force})
    tell(answer, f"{answer['message']} ({size(answer['freed_bytes'])} freed)", as_json=as_json)


@main.command()
@client_options
@click.argument("model", type=path_or_name, required=False)
@click.option(
    "--timeout", "timeout_s", type=float, help="Seconds for what runs; the rest is aborted [drain_timeout_s]."
)
@click.option("--resume", is_flag=True, help="Take requests again.")
def drain(url: str | None, as_json: bool, **body: Any) -> None:
    """Have MODEL (default: all) finish what it has and take nothing new, until --resume."""
    from forgellm.cli.client import Client

    with Client(url) as client:
        answer = client.post("/api/admin/drain", body)
    counts = ", ".join(f"{answer[name]} {name}" for name in ("finished", "moved", "aborted", "left") if name in answer)
    took = f" ({counts}, in {answer['took_s']:.1f} s)" if counts else ""
    tell(answer, answer["message"] + took, as_json=as_json)
    if not body["resume"]:
        click.echo(f"to resume it: forgellm drain {body['model'] or ''} --resume".replace("  ", " "), err=True)


@main.command()
@client_options
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would change.")
def reload(url: str | None, as_json: bool, dry_run: bool) -> None:
    """Have the daemon read its settings again; only the models whose settings changed are touched."""
    from forgellm.cli.client import Client
    from forgellm.cli.show import reload_text

    with Client(url) as client:
        plan = client.post("/api/admin/reload", {"dry_run": dry_run})
    tell(plan, reload_text(plan), as_json=as_json)


@main.command()
@client_options
def ps(url: str | None, as_json: bool) -> None:
    """List the models of the daemon and their workers."""
    from forgellm.cli.client import Client
    from forgellm.cli.show import show_workers

    with Client(url) as client:
        status = client.get("/api/model/status")
    if as_json:
        tell(status, "", as_json=True)
    else:
        show_workers(status)


@main.command()
@client_options
@config_option
@click.option("--remote", metavar="QUERY", help="List models of the Hugging Face Hub instead, to `forgellm pull`.")
def models(url: str | None, as_json: bool, config: str | None, remote: str | None) -> None:
    """List the models that could be loaded."""
    if remote is not None:
        from forgellm.catalog.hub_search import search
        from forgellm.cli.show import show_remote

        there = search(remote)
        if as_json:
            tell(there, "", as_json=True)
        else:
            show_remote(there)
        return
    from forgellm.cli.client import Client
    from forgellm.cli.show import local_models, show_models

    with Client(url) as client:
        found = client.get("/api/models")["models"] if client.answers() else local_models(load_settings(config))
    if as_json:
        tell(found, "", as_json=True)
    else:
        show_models(found)


main.add_command(keys)


@main.command()
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the settings file, for editors.")
@click.option("--json", "as_json", is_flag=True, help="No effect: settings are always printed as JSON.")
def config(config: str | None, schema: bool, as_json: bool) -> None:
    """Print the settings as the file, the environment and the defaults make them."""
    shown = json_schema() if schema else msgspec.to_builtins(load_settings(config))
    click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL; for bash: eval "$(forgellm completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - for mypy: click.Choice lets only shells through that click knows
    click.echo(found(main, {}, "forgellm", "_FORGELLM_COMPLETE").source())


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print each step as a line of JSON.")
@click.option("--model", default="smollm2", show_default=True, help="Which model answers.")
@click.pass_context
def demo(ctx: click.Context, as_json: bool, model: str) -> None:
    """Start a daemon, ask the demo model, kill its worker, ask again, and stop."""
    from forgellm.cli.demo import run_demo

    ctx.exit(run_demo(model, as_json=as_json))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--model", type=path_or_name, help="Try it with this model instead of the echo engine.")
@config_option
@click.pass_context
def selftest(ctx: click.Context, as_json: bool, model: str | None, config: str | None) -> None:
    """Kill and hang the workers of a private pool in every way, and print what each fault cost (half a minute)."""
    from forgellm.cli.selftest import run_selftest

    ctx.exit(run_selftest(load_settings(config), model, as_json=as_json))


def _tell_ready(url: str, as_json: bool) -> None:
    tell({"url": url, "pid": os.getpid()}, f"Serving on {url}", as_json=as_json)
