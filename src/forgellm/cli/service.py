"""`forgellm service`: the daemon as a launchd agent or a systemd user unit. Writes a file; the manager acts on it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from forgellm.cli.options import json_option, tell
from forgellm.cli.service_files import LABEL, daemon_command, launchd_agent, systemd_unit
from forgellm.config import load_settings
from forgellm.errors import StartupError

UNIT_NAME = "forgellm.service"
TOOL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager of this system: where its file belongs, and what to ask it."""

    file: Path
    check: tuple[str, ...]
    start: tuple[tuple[str, ...], ...]
    stop: tuple[tuple[str, ...], ...]
    state: tuple[str, ...]


def manager() -> Manager:
    """launchd on macOS, systemd's user manager elsewhere."""
    if sys.platform == "darwin":
        file = Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        domain = f"gui/{os.getuid()}"
        return Manager(
            file,
            check=("plutil", "-lint", str(file)),
            start=(("launchctl", "bootstrap", domain, str(file)),),
            stop=(("launchctl", "bootout", f"{domain}/{LABEL}"),),
            state=("launchctl", "print", f"{domain}/{LABEL}"),
        )
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    return Manager(
        folder / UNIT_NAME,
        check=("systemd-analyze", "--user", "--man=no", "verify", str(folder / UNIT_NAME)),
        start=(("systemctl", "--user", "daemon-reload"), ("systemctl", "--user", "enable", "--now", UNIT_NAME)),
        stop=(("systemctl", "--user", "disable", "--now", UNIT_NAME),),
        state=("systemctl", "--user", "is-active", UNIT_NAME),
    )


@click.group()
def service() -> None:
    """Run the daemon as a service of this user: started at login, restarted when it fails."""


@service.command()
@click.option("--config", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Settings file (TOML).")
@click.option("--start/--no-start", default=True, show_default=True, help="Start it now, and at every login.")
@json_option
def install(config: Path | None, start: bool, as_json: bool) -> None:
    """Write the service's file, check it, and start it."""
    settings = load_settings(config)  # what cannot be used is told here, not by a service that does not start
    found, command = manager(), daemon_command(config.resolve() if config else None)
    found.file.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "darwin":
        settings.log_path.mkdir(parents=True, exist_ok=True)
        found.file.write_bytes(launchd_agent(command, settings.log_path / "daemon.log"))
    else:
        found.file.write_text(systemd_unit(command), "utf-8")
    checked = _checked(found)
    for each in found.start if start else ():
        _must(each)
    tell({"file": str(found.file), "checked": checked, "started": start}, f"{found.file} is written", as_json=as_json)


@service.command()
@json_option
def uninstall(as_json: bool) -> None:
    """Stop the service and remove its file."""
    found = manager()
    existed = found.file.exists()
    if existed:
        for each in found.stop:
            _run(each)  # it may not be running
        found.file.unlink()
    text = f"{found.file} is removed" if existed else f"there is no {found.file}"
    tell({"file": str(found.file), "removed": existed}, text, as_json=as_json)


@service.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say whether the service is installed and running; exit code 1 if it is not."""
    found = manager()
    is_installed = found.file.exists()
    code, words = _run(found.state) if is_installed else (1, "not installed")
    is_running = is_installed and code == 0
    value = {"file": str(found.file), "installed": is_installed, "running": is_running, "state": words}
    text = "running" if is_running else f"installed, not running ({words})" if is_installed else words
    tell(value, f"{found.file}: {text}", as_json=as_json)
    ctx.exit(0 if is_running else 1)


def _checked(found: Manager) -> bool:
    """Whether the system's own checker, if it is there, accepts the file. Raises StartupError if it does not."""
    if shutil.which(found.check[0]) is None:
        return False
    code, words = _run(found.check)
    if code != 0 or found.file.name in words.replace(f"{found.file}: OK", ""):
        raise StartupError(f"{found.check[0]} does not accept {found.file}: {words}")
    return True


def _must(command: tuple[str, ...]) -> None:
    code, words = _run(command)
    if code != 0:
        hint = "; the file is written, start it where a service manager of this user runs"
        raise StartupError(f"`{' '.join(command)}` failed: {words}{hint}")


def _run(command: tuple[str, ...]) -> tuple[int, str]:
    """(exit code, what it said)."""
    environ = {"XDG_RUNTIME_DIR": "/tmp", **os.environ}  # noqa: S108 - systemd-analyze wants one, and writes nothing
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False, env=environ)
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} does not answer"
    return done.returncode, (done.stdout + done.stderr).strip()
