"""Settings: where they come from, which wins, and how a mistake is told."""

from pathlib import Path

import pytest

from forgellm import config
from forgellm.config import ModelConfig, Settings, as_variables, json_schema, load_settings
from forgellm.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "forgellm.toml"
    path.write_text(text)
    return path


def test_flags_beat_variables_and_variables_beat_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1\nmax_queue = 1\nmax_batch = 1\n")
    settings = load_settings(path, {"FORGELLM_PORT": "2", "FORGELLM_MAX_QUEUE": "2"}, {"port": 3, "max_batch": None})
    assert (settings.port, settings.max_queue, settings.max_batch) == (3, 2, 1)


def test_variables_are_read_in_the_type_of_their_field() -> None:
    env = {
        "FORGELLM_SPARE": "false",
        "FORGELLM_DRAIN_TIMEOUT_S": "1.5",
        "FORGELLM_CORS_ORIGINS": "http://a, http://b",
        "FORGELLM_ALLOWED_HOSTS": "box.lan",
        "FORGELLM_API_KEY": "belongs to the command line too",
        "FORGELLM_MODELS": '{"tiny": {"source": "/tiny"}}',
        "FORGELLM_ALIASES": '{"small": "tiny"}',
        "FORGELLM_URL": "belongs to the command line",
        "UNRELATED": "x",
    }
    settings = load_settings(env=env)
    assert settings.spare is False
    assert settings.drain_timeout_s == 1.5
    assert settings.cors_origins == ["http://a", "http://b"]
    assert settings.allowed_hosts == ["box.lan"]
    assert settings.models["tiny"].source == "/tiny"
    assert settings.model_name("small") == "tiny"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["prot"]),
        ("[models.tiny]\nsorce = 'x'", ["sorce", "models.tiny"]),
        ("[models.tiny]\nsource = 'x'\nreplicas = 0", ["models.tiny", "replicas"]),
        ("port = 'high'", ["port", "int"]),
        ("port = 99999", ["port", "65535"]),
        ("[aliases]\na = 'b'\nb = 'a'", ["aliases.a", "a -> b -> a"]),
        ("[aliases]\na = 'a'", ["aliases.a", "leads back to itself"]),
        ("[aliases]\ntiny = 'x'\n[models.tiny]\nsource = 'x'", ["aliases.tiny", "is configured"]),
        ("port = ", ["TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_path(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert all(word in str(caught.value) for word in [*words, str(path)])


def test_a_mistake_in_a_variable_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="FORGELLM_PORT"):
        load_settings(env={"FORGELLM_PORT": "high"})


@pytest.mark.parametrize(
    ("variable", "hint"),
    [("FORGELLM_MAX_BACTH", "do you mean FORGELLM_MAX_BATCH"), ("FORGELLM_XYZZY", "`forgellm config` lists")],
)
def test_a_variable_that_is_no_setting_is_refused_with_what_may_be_meant(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is no setting; {hint}") as caught:
        load_settings(env={variable: "1"})
    assert caught.value.field == variable


def test_the_variables_of_the_command_line_are_no_mistakes() -> None:
    own = {"FORGELLM_URL": "http://x", "FORGELLM_API_KEY": "k", "FORGELLM_API_KEY_FILE": "f"}
    assert load_settings(env=own) == Settings()


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "nowhere.toml", {})


def test_the_schema_explains_every_setting() -> None:
    definitions = json_schema()["$defs"]
    for name in ("Settings", "ModelConfig"):
        for field, described in definitions[name]["properties"].items():
            assert described.get("description"), f"{name}.{field} has no line of doc"


def test_folders_follow_the_cache_folder() -> None:
    settings = Settings(cache_dir="~/x")
    assert settings.log_path == Path("~/x/logs").expanduser()
    assert Settings(log_dir="/logs").log_path == Path("/logs")
    assert Settings(keys_file="~/k.json").keys_path == Path("~/k.json").expanduser()
    assert Settings().keys_path.name == "keys.json"
    assert Settings().cache_path.name == "forgellm"


def test_an_alias_may_stand_for_another_and_any_other_name_for_itself() -> None:
    settings = Settings(aliases={"gpt": "best", "best": "org/model"})
    assert [settings.model_name(name) for name in ("gpt", "best", "org/model", "else")] == ["org/model"] * 3 + ["else"]
    assert settings.aliases_of("org/model") == ("gpt", "best")


def test_settings_pass_through_the_environment_of_another_process_unchanged() -> None:
    """So that a client can start a daemon with its own."""
    given = Settings(
        host="::1",
        port=0,
        cors_origins=["https://a.example", "https://b.example"],
        models={"e": ModelConfig(source="echo", pin=True, options={"text": "a, b"})},
        spare=False,
        cache_dir="/tmp/a b",
        hang_timeout_s=0.25,
    )
    assert load_settings(env=as_variables(given)) == given
    assert as_variables(Settings()) == {}


@pytest.mark.parametrize("name", [name for name in Settings.__struct_fields__ if getattr(Settings(), name) is not None])
def test_every_setting_has_a_text_that_reads_back(name: str) -> None:
    default = getattr(Settings(), name)
    text = config._as_text(default)
    assert getattr(load_settings(env={f"FORGELLM_{name.upper()}": text}), name) == default
