"""Settings of the daemon and of each model: a TOML file, then FORGELLM_* variables, then flags; the last one wins.

Decoded and checked by msgspec in one place; an unknown key or a wrong type is refused with its path in the message.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import platformdirs

from forgellm import typed
from forgellm.errors import ConfigError
from forgellm.messages import LoadPolicy

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class TakesEffect(StrEnum):
    """When a running daemon goes by a setting that was changed; every field of Settings is marked with one of them."""

    AT_ONCE = "at once"
    IN_LOADS = "at once, in each load"  # it is part of every load: loaded models that it concerns are replaced
    AT_RESTART = "after a restart"


AT_ONCE, IN_LOADS, AT_RESTART = TakesEffect
ENV_PREFIX = "FORGELLM_"
CLIENT_VARIABLES = frozenset({"FORGELLM_URL", "FORGELLM_API_KEY", "FORGELLM_API_KEY_FILE"})
"""Of the command line, which speaks to a daemon; no settings."""


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def _field(doc: str) -> msgspec.Meta:
    return msgspec.Meta(description=doc)


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[models.NAME]`: a name of your own for a model, and how to load it."""

    source: Annotated[str, _field("Folder, GGUF file, Hugging Face repo in the local cache, or `smollm2`.")]
    adapter: Annotated[str | None, _field("LoRA adapter: a folder, or a *.safetensors in it.")] = None
    context_length: Annotated[Positive | None, _field("Longest prompt + answer, tokens; default the model's own.")] = (
        None
    )
    max_kv_size: Annotated[Positive | None, _field("Cap of each request's KV cache, tokens (a rotating window).")] = (
        None
    )
    replicas: Annotated[int, msgspec.Meta(ge=1, le=64, description="Workers that serve this model.")] = 1
    ttl_s: Annotated[Seconds | None, _field("Unload after so many idle seconds; default never.")] = None
    progress_timeout_s: Annotated[Seconds | None, _field("Overrides the server-wide `progress_timeout_s`.")] = None
    queue_timeout_s: Annotated[Seconds | None, _field("Overrides the server-wide `queue_timeout_s`.")] = None
    first_token_timeout_s: Annotated[Seconds | None, _field("Overrides the server-wide `first_token_timeout_s`.")] = (
        None
    )
    token_timeout_s: Annotated[Seconds | None, _field("Overrides the server-wide `token_timeout_s`.")] = None
    request_timeout_s: Annotated[Seconds | None, _field("Overrides the server-wide `request_timeout_s`.")] = None
    pin: Annotated[bool, _field("Never unload it for being idle, nor to make room for another model.")] = False
    priority: Annotated[int, _field("Where memory is needed, idle models of a lower priority go first.")] = 0
    layout: Annotated[Literal["auto", "f32", "native"] | None, _field("Overrides the server-wide `layout`.")] = None
    system_prompt: Annotated[str | None, _field("Default system prompt of /api/model/generate.")] = None
    preload: Annotated[bool, _field("Load it when the daemon starts.")] = False
    load_policy: Annotated[LoadPolicy | None, _field("Overrides the server-wide `load_policy`.")] = None
    options: Annotated[dict[str, Any], _field("Knobs of the echo engine (source `echo`), for tests.")] = {}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set. Bytes and seconds are in the names; 0 means off where a limit may be off."""

    host: Annotated[str, AT_RESTART, _field("Address to listen on.")] = "127.0.0.1"
    port: Annotated[Port, AT_RESTART, _field("Port to listen on; 0 takes a free one.")] = 5001
    cors_origins: Annotated[
        list[str], AT_RESTART, _field("Origins of web pages that may call the API; `*` for any.")
    ] = []
    allowed_hosts: Annotated[
        list[str],
        AT_RESTART,
        _field("Names besides its address and the loopback ones that clients may call it by; `*` for any."),
    ] = []
    keys_file: Annotated[
        str | None, AT_RESTART, _field("The API keys; default keys.json in the user's config folder.")
    ] = None
    max_streams: Annotated[
        Positive, AT_RESTART, _field("Requests served at the same time over HTTP; more get 503.")
    ] = 128
    max_request_bytes: Annotated[Positive, AT_RESTART, _field("Largest request body.")] = 16 << 20
    log_level: Annotated[Literal["debug", "info", "warning", "error"], AT_RESTART, _field("Log level.")] = "info"
    otel: Annotated[
        bool, AT_RESTART, _field("Send OpenTelemetry spans of requests by OTLP; OTEL_* variables say where to.")
    ] = False
    log_format: Annotated[
        Literal["human", "json"], AT_RESTART, _field("Log lines for people, or a JSON object a line.")
    ] = "human"

    models: Annotated[dict[str, ModelConfig], AT_ONCE, _field("Models by your own names.")] = {}
    aliases: Annotated[dict[str, str], IN_LOADS, _field('Other names for models: `short = "the/models-name"`.')] = {}
    load_policy: Annotated[
        LoadPolicy,
        IN_LOADS,
        _field("`on_demand`: a request loads the model it names; `preloaded`: only what is loaded, or has `preload`."),
    ] = "on_demand"
    models_dir: Annotated[
        str | None, IN_LOADS, _field("Folder whose sub-folders are models; default ~/models if it exists.")
    ] = None
    cache_dir: Annotated[
        str | None, AT_RESTART, _field("Converted models and the demo model; default the user's cache folder.")
    ] = None
    log_dir: Annotated[
        str | None, AT_RESTART, _field("One log file per worker life; default inside the cache folder.")
    ] = None
    state_dir: Annotated[
        str | None,
        AT_RESTART,
        _field("Socket, key, lock and journal of one daemon, mode 0700; default inside the cache folder."),
    ] = None
    socket: Annotated[
        str | None,
        AT_RESTART,
        _field("The control socket; default control.sock in state_dir. The rest lies beside it."),
    ] = None

    control_host: Annotated[
        str | None,
        AT_RESTART,
        _field("Address where paired machines reach the control socket, over TLS; default nowhere."),
    ] = None
    control_port: Annotated[Port, AT_RESTART, _field("Port of control_host; 0 takes a free one.")] = 5002
    machines_dir: Annotated[
        str | None,
        AT_RESTART,
        _field("This machine's certificate, and those it is paired with; default in the config folder."),
    ] = None

    layout: Annotated[
        Literal["auto", "f32", "native"],
        IN_LOADS,
        _field("On a CPU: `auto` dequantises to f32 if memory allows, `native` keeps the weights as they are."),
    ] = "auto"
    fast_blas: Annotated[bool, AT_RESTART, _field("On a Linux CPU: use an optimised BLAS in the workers.")] = True
    max_batch: Annotated[Positive, IN_LOADS, _field("Requests that one worker advances together.")] = 32
    prefill_chunk_s: Annotated[
        Seconds, IN_LOADS, _field("How long one prefill chunk may hold up the other streams.")
    ] = 0.5
    prefix_cache_bytes: Annotated[Natural, IN_LOADS, _field("KV kept for prompt prefixes, per worker.")] = 1 << 30

    verify_weights: Annotated[
        bool,
        AT_ONCE,
        _field("Compare the sha256 of weights, where it is known, before they are first loaded: 1 to 2 s a GB."),
    ] = True
    memory_budget_bytes: Annotated[
        Natural,
        AT_ONCE,
        _field("What all workers together may hold; 0: 80 % of RAM (or the cgroup's limit), on macOS 75 %."),
    ] = 0
    memory_soft_limit: Annotated[
        Share,
        AT_ONCE,
        _field("Share of the budget above which workers drop their caches, and loads must make room first."),
    ] = 0.9
    memory_hard_limit: Annotated[
        Share,
        AT_ONCE,
        _field("Share of the budget above which the worker that outgrew its estimate loses requests, then ends."),
    ] = 1.0
    kv_plan_tokens: Annotated[
        Natural,
        AT_ONCE,
        _field("Tokens of KV cache that a load must have room for, over all its requests."),
    ] = 4096
    recycle_after_requests: Annotated[
        Natural,
        AT_ONCE,
        _field("Replace a worker after so many requests; its streams move. 0: never."),
    ] = 0
    recycle_growth_factor: Annotated[
        float,
        AT_ONCE,
        msgspec.Meta(ge=0, description="Replace a worker that holds so many times its first size; 0: never."),
    ] = 0.0

    max_hold_off_s: Annotated[
        Seconds,
        AT_ONCE,
        _field("Longest that busy models keep one that waits for their memory out; 0: until they are idle."),
    ] = 30.0
    max_queue: Annotated[
        Positive, AT_ONCE, _field("Requests that may wait for one model; more get 429. One API key alone gets half.")
    ] = 256
    max_queue_total: Annotated[
        Positive, AT_ONCE, _field("Requests that may wait for all models together; more get 503. One key: half, 429.")
    ] = 1024
    queue_timeout_s: Annotated[Seconds, AT_ONCE, _field("Longest wait in the queue; then 503. 0: no limit.")] = 300.0
    first_token_timeout_s: Annotated[
        Seconds,
        AT_ONCE,
        _field("Longest wait for the first token, once a worker has the request; then 504. 0: no limit."),
    ] = 0.0
    token_timeout_s: Annotated[Seconds, AT_ONCE, _field("Longest wait from token to token; 0: no limit.")] = 0.0
    request_timeout_s: Annotated[
        Seconds, AT_ONCE, _field("Longest a request may take in all, the queue included; 0: no limit.")
    ] = 0.0
    spare: Annotated[bool, AT_ONCE, _field("Keep one worker imported and ready for the next load or respawn.")] = True
    hello_timeout_s: Annotated[Seconds, AT_ONCE, _field("From spawn to the worker's first word.")] = 10.0
    import_timeout_s: Annotated[
        Seconds, AT_ONCE, _field("From the first word to the engine's libraries being imported.")
    ] = 120.0
    load_timeout_s: Annotated[Seconds, AT_ONCE, _field("Longest a load may take.")] = 1800.0
    hang_timeout_s: Annotated[
        Seconds, AT_ONCE, _field("A worker without a heartbeat for so long is killed; 0: never.")
    ] = 15.0
    progress_timeout_s: Annotated[
        Seconds, AT_ONCE, _field("A worker that has requests and makes no step for so long is killed; 0: never.")
    ] = 60.0
    load_stall_timeout_s: Annotated[
        Seconds, AT_ONCE, _field("A worker whose load makes no progress for so long is killed; 0: never.")
    ] = 120.0
    readiness_timeout_s: Annotated[
        Seconds,
        AT_RESTART,
        _field("A model whose requests make no progress for so long is not ready for /readyz; 0: never."),
    ] = 30.0
    drain_timeout_s: Annotated[Seconds, AT_ONCE, _field("How long an unload lets running requests finish.")] = 30.0
    shutdown_grace_s: Annotated[
        Seconds, AT_RESTART, _field("How long a stopping daemon lets running requests finish.")
    ] = 30.0
    unload_timeout_s: Annotated[Seconds, AT_ONCE, _field("From unload to SIGTERM.")] = 5.0
    term_timeout_s: Annotated[Seconds, AT_ONCE, _field("From SIGTERM to SIGKILL.")] = 5.0
    backoff_initial_s: Annotated[Seconds, AT_ONCE, _field("Wait before the second respawn in a row; doubles.")] = 0.5
    backoff_max_s: Annotated[Seconds, AT_ONCE, _field("Longest wait between respawns.")] = 30.0
    crash_budget: Annotated[
        Positive,
        AT_ONCE,
        _field("Crashes (no kills from outside) of a replica in crash_window_s; then it is failed."),
    ] = 3
    crash_window_s: Annotated[Seconds, AT_ONCE, _field("Window of the crash budget.")] = 300.0
    log_bytes: Annotated[
        Positive, AT_RESTART, _field("Largest log file of one worker life; then its tail is kept.")
    ] = 4 << 20

    def __post_init__(self) -> None:
        for alias in self.aliases:
            if alias in self.models:
                raise ConfigError(f"aliases.{alias}: a model is configured under this name; give the alias another")
            self.model_name(alias)

    def model_name(self, name: str) -> str:
        """The model that a name stands for: the name itself unless it is an alias. Raises ConfigError for a loop."""
        seen = [name]
        while seen[-1] in self.aliases:
            seen.append(self.aliases[seen[-1]])
            if seen[-1] in seen[:-1]:
                raise ConfigError(f"aliases.{name}: it leads back to itself ({' -> '.join(seen)})")
        return seen[-1]

    def aliases_of(self, model: str) -> tuple[str, ...]:
        """All aliases that stand for a model."""
        return tuple(alias for alias in self.aliases if self.model_name(alias) == model)

    @property
    def cache_path(self) -> Path:
        return _path(self.cache_dir) or Path(platformdirs.user_cache_dir("forgellm", False))

    @property
    def keys_path(self) -> Path:
        return _path(self.keys_file) or _config_folder() / "keys.json"

    @property
    def machines_path(self) -> Path:
        return (_path(self.machines_dir) or _config_folder() / "machines").absolute()

    @property
    def log_path(self) -> Path:
        return _path(self.log_dir) or self.cache_path / "logs"

    @property
    def socket_path(self) -> Path:
        folder = _path(self.state_dir) or self.cache_path / "state"
        return (_path(self.socket) or folder / "control.sock").absolute()


def _path(given: str | None) -> Path | None:
    return Path(given).expanduser() if given else None


def _config_folder() -> Path:
    return Path(platformdirs.user_config_dir("forgellm", False))


def load_settings(
    path: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from a TOML file, then `env` (default os.environ), then `flags` (None values are not set).

    Raises ConfigError naming the file or variable, the path of the key, and what it may be.
    """
    merged: dict[str, Any] = _read_toml(Path(path)) if path is not None else {}
    _check(merged, f"{path}: " if path else "")
    environ = os.environ if env is None else env
    names = Settings.__struct_fields__
    for variable in sorted(v for v in environ if v.startswith(ENV_PREFIX)):
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in names:
            merged[name] = _from_variable(variable, name, environ[variable])
        elif variable not in CLIENT_VARIABLES:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"do you mean {ENV_PREFIX}{near[0].upper()}?" if near else "`forgellm config` lists them all"
            raise ConfigError(f"the variable {variable} is no setting; {hint}", field=variable)
    merged.update({k: v for k, v in (flags or {}).items() if v is not None})
    return _check(merged, "")


def as_variables(settings: Settings) -> dict[str, str]:
    """The FORGELLM_* variables that make load_settings() give these settings again: what differs from the defaults."""
    defaults = Settings()
    given = {name: getattr(settings, name) for name in Settings.__struct_fields__}
    return {
        f"{ENV_PREFIX}{name.upper()}": _as_text(value)
        for name, value in given.items()
        if value != getattr(defaults, name)
    }


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ",".join(value) if isinstance(value, list) else msgspec.json.encode(value).decode()


def json_schema() -> dict[str, Any]:
    """JSON Schema of the TOML file, for editors (`forgellm config --schema`)."""
    return msgspec.json.schema(Settings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _from_variable(variable: str, name: str, text: str) -> Any:
    """A variable's text as the field's type: a list is comma-separated, `models` and `aliases` are JSON."""
    hint = {field.name: field.type for field in msgspec.structs.fields(Settings)}[name]
    value: Any = text
    try:
        if name in {"cors_origins", "allowed_hosts"}:
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif name in {"models", "aliases"}:
            value = msgspec.json.decode(text)
        return msgspec.to_builtins(typed.convert(value, hint, strict=False))
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{variable}: {error}") from error


def _check(values: Mapping[str, Any], where: str) -> Settings:
    models = values.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        _convert(model, ModelConfig, f"{where}models.{name}: ")  # apart, for msgspec leaves a mapping's keys unnamed
    return _convert(values, Settings, where)


def _convert(values: Any, kind: type[_Struct], where: str) -> _Struct:
    try:
        return typed.convert(values, kind)
    except ConfigError as error:
        raise ConfigError(f"{where}{error.message}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}{error}; see `forgellm config --schema` for every key") from error
