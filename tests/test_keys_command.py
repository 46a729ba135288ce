"""`forgellm keys`, and how the other commands send a key."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from forgellm import keys
from forgellm.cli import client, main
from forgellm.errors import ConfigError

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`forgellm keys …` on a keys file of its own."""
    monkeypatch.setenv("FORGELLM_KEYS_FILE", str(tmp_path / "keys.json"))
    monkeypatch.setenv("FORGELLM_MACHINES_DIR", str(tmp_path / "machines"))

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["keys", *arguments])

    return command


def test_create_prints_the_key_alone_and_once(run, tmp_path):
    created = run("create", "--name", "laptop", "--rate", "60", "--concurrency", "2", "--models", "a, b")
    secret = created.stdout.strip()
    assert created.exit_code == 0
    assert keys.SHAPE.fullmatch(secret)
    assert "infer, only a, b, 60 requests a minute, 2 at a time" in created.stderr
    assert secret not in created.stderr + run("list").output + run("list", "--json").output
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_a_load_policy_is_one_of_two(run):
    assert "only what is loaded" in run("create", "--load-policy", "preloaded").stderr
    assert "loads on demand" in run("create", "--load-policy", "on_demand").stderr
    assert run("create", "--load-policy", "never").exit_code == 2


def test_scopes_add_up_and_json_has_all_but_the_hash(run):
    made = json.loads(run("create", "--scope", "manage", "--scope", "metrics", "--json").stdout)
    assert (made["scopes"], made["models"], made["rate_per_min"]) == (["manage", "metrics"], None, None)
    assert keys.SHAPE.fullmatch(made.pop("key"))
    assert json.loads(run("list", "--json").stdout) == [made]
    assert "sha256" not in made
    assert json.loads(run("revoke", made["id"], "--json").stdout) == made


def test_list_tells_no_keys_from_no_key_left(run):
    assert "none is needed" in run("list").stdout
    run("create", "--name", "a")
    assert "a: infer, any model" in run("list").stdout
    revoked = run("revoke", "a")
    assert (revoked.exit_code, "nobody is let in" in revoked.stderr) == (0, True)
    assert "nobody is let in" in run("list").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("revoke", "nobody"), 1),
        (("create", "--name", "two words"), 1),
        (("create", "--models", " , "), 1),
        (("create", "--rate", "0"), 2),
        (("create", "--scope", "root"), 2),
    ],
)
def test_what_cannot_be_is_one_line(run, arguments, code):
    result = run(*arguments)
    assert result.exit_code == code
    assert "Error: " in result.stderr.splitlines()[-1]


def test_a_broken_file_is_told_by_every_command(run, tmp_path):
    (tmp_path / "keys.json").write_text("{")
    for arguments in (("list",), ("create",), ("revoke", "x")):
        result = run(*arguments)
        assert (result.exit_code, "keys.json" in result.stderr) == (2, True)


def sent(path: Path | None = None) -> str | None:
    """The key that a command with --api-key-file `path` would send."""
    with click.Context(click.Command("ps"), obj=None) as ctx:
        ctx.meta[client.KEY_FILE] = str(path) if path else None
        return client.api_key()


def test_a_key_comes_from_the_file_or_the_environment_and_the_file_wins(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("fk-file\n")
    assert sent() is None
    monkeypatch.setenv("FORGELLM_API_KEY", "fk-env")
    assert sent() == "fk-env"
    assert sent(tmp_path / "key") == "fk-file"
    assert client.api_key() == "fk-env"


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xff", None])
def test_a_file_without_one_key_is_refused_and_not_repeated(tmp_path, content):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        sent(path)
    assert "words" not in str(caught.value)


def test_no_command_takes_a_key_as_an_argument():
    """Everyone on the machine reads the arguments of every process."""
    options = {option for command in main.commands.values() for param in command.params for option in param.opts}
    assert "--api-key-file" in options
    assert not options & {"--api-key", "--key", "--token"}
