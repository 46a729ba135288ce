"""The command line: what it prints, where, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import httpx2
import pytest
from click.testing import CliRunner, Result

from daemons import Daemon, daemon
from forgellm.cli import main
from forgellm.cli.client import CONNECT_TIMEOUT_S, Client
from forgellm.errors import Unavailable
from waiting import DEADLINE_S, wait_until

MODELS = """
[models.e]
source = "echo"
[models.late]
source = "echo"
options = {load_s = 0.3}
[models.broken]
source = "echo"
options = {load_error = "model_invalid: the weights are cut short"}
[models.huge]
source = "echo"
options = {allocate_bytes = 1000000000000000}
[models.fails]
source = "echo"
options = {fail_at_token = 1}
"""


def forgellm(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command; an exception that is not an exit would be a traceback for the user, so it fails the test."""
    result = CliRunner().invoke(main, list(arguments), input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses connections: bound, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("cli"), MODELS) as found:
        yield found
        assert found.stop() == 0


def test_help_and_version_answer():
    assert "forgellm, version" in forgellm("--version").stdout
    assert "serve" in forgellm("--help").stdout


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups included."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("command", [c for c in commands() if c != ("completion",)], ids=" ".join)
def test_every_command_has_json(command):
    assert "--json" in forgellm(*command, "--help").stdout


@pytest.mark.parametrize("command", [("ps",), ("load", "e"), ("unload",), ("run", "e", "hi")])
def test_without_a_daemon_there_is_one_line_that_says_what_to_do(command, nobody):
    result = forgellm(*command, "--url", nobody)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"Error: no daemon at {nobody}; start one with `forgellm serve`"]
    assert result.stdout == ""


@pytest.mark.e2e
def test_a_drain_is_reported_and_resumed(served):
    forgellm("load", "e", "--url", served.url)
    drained = forgellm("drain", "e", "--timeout", "5", "--url", served.url)
    assert "e is drained" in drained.stdout
    assert "0 finished, 0 moved, 0 aborted, 0 left" in drained.stdout
    assert drained.stderr == "to resume it: forgellm drain e --resume\n"
    assert "ready, drained" in forgellm("ps", "--url", served.url).stdout
    assert "is being drained" in forgellm("run", "e", "hi", "--url", served.url).stderr
    assert forgellm("drain", "--resume", "e", "--url", served.url).stdout == "e takes requests again\n"
    assert forgellm("run", "e", "hi", "--url", served.url).stdout.strip() == "hi"
    forgellm("unload", "e", "--url", served.url)  # the next test counts what is loaded


def test_a_machine_that_does_not_answer_is_told_in_seconds_whatever_is_asked():
    """A load may take as long as it takes; to find out that nobody is there may not."""
    waits = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        waits.append(request.extensions["timeout"]["connect"])
        raise httpx2.ConnectTimeout("nobody is there")

    with Client("http://192.0.2.1") as client:
        client._http._transport = httpx2.MockTransport(answer)
        for ask in (
            lambda: client.get("/x"),
            lambda: client.post("/x", {}),
            lambda: client.delete("/x"),
            lambda: next(client.generate({})),
            lambda: next(client.events("/x")),
        ):
            with pytest.raises(Unavailable):
                ask()
    assert waits == [CONNECT_TIMEOUT_S] * 5


def test_an_address_that_is_none_is_told_too():
    result = forgellm("ps", "--url", "http://")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")


def test_the_settings_are_printed_as_json(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text("port = 7000\n", "utf-8")
    assert json.loads(forgellm("config", "--config", str(path)).stdout)["port"] == 7000
    assert "$defs" in json.loads(forgellm("config", "--schema").stdout)


def test_settings_that_cannot_be_used_end_with_2(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text("prot = 7000\n", "utf-8")
    for command in ("config", "serve"):
        result = forgellm(command, "--config", str(path))
        assert result.exit_code == 2
        assert "prot" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell):
    assert "_FORGELLM_COMPLETE" in forgellm("completion", shell).stdout


@pytest.mark.parametrize(("option", "value"), [("--max-tokens", "0"), ("--temperature", "-1"), ("--top-p", "2")])
def test_run_checks_its_options_before_it_does_anything(option, value, nobody):
    result = forgellm("run", "e", "hi", "--url", nobody, option, value)
    assert result.exit_code == 1
    assert option.strip("-").replace("-", "_") in result.stderr


@pytest.mark.e2e
def test_load_ps_run_unload(served):
    loaded = forgellm("load", "late", "--url", served.url)
    assert (loaded.exit_code, loaded.stdout) == (0, "")
    assert "late is ready" in loaded.stderr
    listed = forgellm("ps", "--url", served.url)
    assert "late#1" in listed.stdout
    assert "ready" in listed.stdout
    assert [m["model_name"] for m in json.loads(forgellm("ps", "--url", served.url, "--json").stdout)["models"]] == [
        "late"
    ]
    answered = forgellm("run", "late", "one two three", "--url", served.url)
    assert answered.stdout == "one two three\n"
    assert "freed" in forgellm("unload", "late", "--url", served.url).stdout
    assert json.loads(forgellm("unload", "late", "--json", "--url", served.url).stdout)["freed_bytes"] == 0
    assert forgellm("ps", "--url", served.url).stdout == "no model is loaded\n"


@pytest.mark.e2e
def test_the_logs_of_a_worker_and_the_events_of_the_daemon_are_printed(served):
    forgellm("load", "late", "--url", served.url)
    status = served.http.get("/api/model/status").json()
    with Path(f"{status['log_stem']}{status['life']}.log").open("a", encoding="utf-8") as log:
        log.write("its last words\n")  # the echo engine has none of its own
    assert forgellm("logs", "late", "-n", "1", "--url", served.url).stdout == "late#1 | its last words\n"
    parsed = json.loads(forgellm("logs", "late", "-n", "1", "--json", "--url", served.url).stdout)
    assert parsed == {"worker": "late#1", "life": status["life"], "line": "its last words"}
    with Client(served.url) as client:
        name, picture = next(client.events("/api/events"))
    assert (name, picture["models"][0]["model_name"]) == ("snapshot", "late")
    missing = forgellm("logs", "nope", "--url", served.url)
    assert (missing.exit_code, missing.stderr.splitlines()[-1]) == (
        1,
        "Error: the model nope is not loaded; `forgellm ps` lists those that are",
    )
    forgellm("unload", "late", "--url", served.url)


def ready_life(served: Daemon, model: str) -> int | None:
    status = served.http.get("/api/model/status", params={"model": model}).json()
    return status["life"] if status["state"] == "ready" else None


@pytest.mark.e2e
def test_logs_that_are_followed_go_on_in_the_next_lives_of_a_worker_that_crashes(served):
    """What a crash says of itself is in the log of its life. Ctrl-C ends the command without a traceback."""
    forgellm("load", "e", "--url", served.url)
    command = [sys.executable, "-m", "forgellm.cli", "logs", "-f", "e", "--json", "--url", served.url]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    crashed: list[int] = []
    with ExitStack() as stack:
        stack.enter_context(follower)
        stack.callback(follower.kill)
        timer = threading.Timer(DEADLINE_S, follower.kill)  # ends the read below
        timer.start()
        stack.callback(timer.cancel)
        for _ in range(2):
            wait_until(lambda: ready_life(served, "e") not in (None, *crashed))
            status = served.http.get("/api/model/status", params={"model": "e"}).json()
            with Path(f"{status['log_stem']}{status['life']}.log").open("a", encoding="utf-8") as log:
                log.write("it begins\n")  # so that what follows is known to be followed
            lines = map(json.loads, follower.stdout)
            assert next(line["life"] for line in lines if line["line"] == "it begins") == status["life"]
            os.kill(status["pid"], signal.SIGSEGV)
            crashed.append(status["life"])
            line = next(line for line in lines if "Fatal Python error" in line["line"])
            assert (line["worker"], line["life"]) == ("e#1", crashed[-1])
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=DEADLINE_S)
    assert crashed[0] != crashed[1]
    assert "Traceback" not in said
    forgellm("unload", "e", "--url", served.url)


@pytest.mark.e2e
def test_run_loads_what_is_not_loaded_and_reads_stdin(served):
    answered = forgellm("run", "e", "-", "--url", served.url, "--json", "--stats", stdin="from a pipe")
    answer = json.loads(answered.stdout)
    assert (answer["text"], answer["finish_reason"]) == ("from a pipe", "stop")
    assert "3 generated at" in answered.stderr
    forgellm("unload", "e", "--url", served.url)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("load", "nope"), "nope"),
        (("load", "broken"), "cut short"),
        (("run", "broken", "hi"), "cut short"),
        (("run", "fails", "one two three"), "fail_at_token"),
    ],
)
def test_what_the_daemon_refuses_is_one_line_and_exit_1(served, command, says):
    result = forgellm(*command, "--url", served.url)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert says in last


@pytest.mark.e2e
def test_models_are_listed_with_and_without_a_daemon(served, nobody, tmp_path, monkeypatch):
    config = tmp_path / "c.toml"
    config.write_text(MODELS, "utf-8")
    from_daemon = json.loads(forgellm("models", "--json", "--url", served.url).stdout)
    from_here = json.loads(forgellm("models", "--json", "--url", nobody, "--config", str(config)).stdout)
    assert {"e", "late", "smollm2"} <= {model["id"] for model in from_daemon}
    assert {model["id"] for model in from_daemon} == {model["id"] for model in from_here}
    assert "smollm2" in forgellm("models", "--url", served.url).stdout


@pytest.mark.process
def test_run_works_without_a_daemon(tmp_path, monkeypatch, nobody):
    """With no address given and nobody there, it runs the model itself."""
    monkeypatch.setenv("FORGELLM_PORT", nobody.rpartition(":")[2])
    monkeypatch.setenv("FORGELLM_CACHE_DIR", str(tmp_path))
    result = forgellm("run", "echo", "all by myself")
    assert (result.exit_code, result.stdout) == (0, "all by myself\n")


def test_a_path_reaches_the_daemon_as_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon runs in another folder."""
    from forgellm.cli.options import path_or_name

    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path.resolve())
    assert path_or_name("org/model") == f"{here}/org/model"
    assert path_or_name("./missing") == f"{here}/missing"
    assert path_or_name("../x") == str(tmp_path.resolve().parent / "x")
    assert path_or_name("org/other") == "org/other"
    assert path_or_name("smollm2") == "smollm2"


@pytest.mark.process
def test_a_dry_run_says_what_a_load_would_need_and_loads_nothing(served):
    result = forgellm("load", "late", "--dry-run", "--url", served.url)
    assert result.exit_code == 0, result.output
    assert "late needs 0 MB (weights 0 MB, kv 0 MB, runtime 0 MB, transient 0 MB)" in result.stdout
    assert "it fits" in result.stdout
    assert "late" not in forgellm("ps", "--url", served.url).stdout
    refused = forgellm("load", "huge", "--dry-run", "--url", served.url)
    assert refused.exit_code == 1
    assert "it does not fit: huge needs" in refused.stdout
    plan = json.loads(forgellm("load", "huge", "--dry-run", "--json", "--url", served.url).stdout)
    assert (plan["fits"], plan["need_bytes"]["weights"]) == (False, 10**15)
    loaded = forgellm("load", "huge", "--url", served.url)
    assert (loaded.exit_code, "insufficient" in loaded.stderr or "budget" in loaded.stderr) == (1, True)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["org/name?x", "org/name#x", "org/a%2e"])
def test_what_is_removed_is_the_name_as_it_was_typed(served, name):
    result = forgellm("rm", name, "--url", served.url)
    assert result.exit_code == 1
    assert name in result.stderr
