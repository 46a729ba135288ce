"""What a systemd user unit and a launchd agent for the daemon look like. Text only: installs and starts nothing."""

import plistlib
import sys
from pathlib import Path

LABEL = "dev.forgellm.supervisor"
STOP_S = 90  # shutdown_grace_s, the stop of the workers, and room

UNIT = """\
[Unit]
Description=ForgeLLM, a local model server
After=network.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# Settings, or a preloaded model, that cannot be used (2), and an address in use (3), do not mend by themselves.
Restart=on-failure
RestartPreventExitStatus=2 3
RestartSec=1
# The daemon says that it lives only when its supervisor's thread has answered.
WatchdogSec=30
TimeoutStartSec=120
TimeoutStopSec={stop_s}
# SIGTERM goes to the daemon alone, which ends its workers in order; what is left at the end is killed.
KillMode=mixed
# A worker that the kernel's OOM killer ends is replaced by the daemon.
OOMPolicy=continue
LimitNOFILE=65536

[Install]
WantedBy=default.target
"""


def daemon_command(config: Path | None) -> list[str]:
    """How the daemon is started by this Python."""
    return [sys.executable, "-m", "forgellm.daemon", *(("--config", str(config)) if config else ())]


def systemd_unit(command: list[str]) -> str:
    """The unit's text; `command` as a list of arguments."""
    return UNIT.format(command=" ".join(map(_quoted, command)), stop_s=STOP_S)


def launchd_agent(command: list[str], log: Path) -> bytes:
    """The agent's property list; its output goes to `log`. Untested on macOS."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": command,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 5,
            "ExitTimeOut": STOP_S,
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": 65536},
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    )


def _quoted(argument: str) -> str:
    """One argument of ExecStart=: systemd expands % and $, and splits at blanks."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
