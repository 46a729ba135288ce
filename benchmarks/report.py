"""The tables that a run prints and the JSON it keeps. Computes nothing but ratios."""

import importlib.metadata
import json
import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Sample, median, median_ratio, ratios

PACKAGES = ("forgellm", "mlx", "mlx-lm", "scipy-openblas32", "flask", "waitress")


@dataclass
class Report:
    """Everything that one run found."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    goals: list[dict[str, Any]] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(width=110, highlight=False))

    def speeds(self, title: str, requests: int, samples: dict[str, list[Sample]], baseline: str) -> None:
        """A line for each contender: medians, and their ratios to the baseline's."""
        base = samples[baseline]
        for name, runs in samples.items():
            rates = ratios([s.tokens_per_s for s in runs], [s.tokens_per_s for s in base])
            first = median_ratio([s.first_s for s in runs], [s.first_s for s in base])
            self._line(
                title,
                {
                    "requests": requests,
                    "what": name,
                    "tokens": runs[0].tokens,
                    "tokens/s": round(median(s.tokens_per_s for s in runs), 1),
                    f"÷ {baseline}": round(median(rates), 3),
                    "of its rounds": f"{min(rates):.2f} to {max(rates):.2f}",
                    "first token (s)": round(median(s.first_s for s in runs), 4),
                    f"÷ {baseline}'s": round(first, 3),
                },
            )

    def ratios(self, title: str, requests: int, what: str) -> tuple[float, float]:
        """Tokens/s and time to first token in a line of an earlier table, each as a ratio to the baseline's."""
        line = next(x for x in self.tables[title] if x["requests"] == requests and x["what"] == what)
        rate, first = (float(value) for key, value in line.items() if key.startswith("÷"))
        return rate, first

    def value(self, title: str, what: str, value: float, unit: str) -> None:
        self._line(title, {"what": what, "value": round(value, 2), "unit": unit})

    def goal(self, text: str, value: float, bound: float, *, at_least: bool) -> None:
        is_met = value >= bound if at_least else value <= bound
        self.goals.append({"goal": text, "measured": round(value, 3), "met": is_met})

    def show(self, title: str) -> None:
        """Print one table, as soon as it is whole."""
        lines = self.tables[title]
        self.console.print(f"\n[bold]{title}[/bold]")
        table = Table()
        for key in lines[0]:
            table.add_column(key, justify="left" if key in {"what", "unit", "goal"} else "right")
        for line in lines:
            table.add_row(*(str(value) for value in line.values()))
        self.console.print(table)

    def show_goals(self) -> None:
        self.console.print("\n[bold]Goals[/bold]")
        table = Table()
        for key in ("goal", "measured", "met"):
            table.add_column(key)
        for goal in self.goals:
            table.add_row(goal["goal"], str(goal["measured"]), "yes" if goal["met"] else "NO")
        self.console.print(table)

    def save(self, folder: Path) -> Path:
        path = folder / f"{socket.gethostname()}.json"
        folder.mkdir(exist_ok=True)
        found = {"machine": machine(), "tables": self.tables, "goals": self.goals}
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        return path

    def _line(self, title: str, line: dict[str, Any]) -> None:
        self.tables.setdefault(title, []).append(line)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
