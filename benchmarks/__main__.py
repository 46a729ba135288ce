"""`python -m benchmarks [--save] [--only PART]…`: every measurement in one run. Only puts the parts in order."""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import patience, speed
from benchmarks import structured as grammars
from benchmarks.models import demo_folder, tiny_folder
from benchmarks.report import Report, machine
from forgellm.config import Settings

RESULTS = Path(__file__).parent / "results"


def demo(report: Report, cache_dir: Path, _scratch: Path) -> None:
    folder = demo_folder(cache_dir)
    with speed.contenders("demo", "smollm2", folder, "f32", cache_dir) as found:
        title = "Demo model (SmolLM2-135M, f32)"
        speed.against_bare(report, "demo", title, found, tokens=32, rounds=15, goal=0.97)
        http = found["HTTP"]
        speed.against_stock_server(report, "Demo model, against stock mlx_lm.server (4-bit)", http, folder, tokens=32)


def tiny(report: Report, cache_dir: Path, scratch: Path) -> None:
    folder = tiny_folder(scratch)
    with speed.contenders("tiny", str(folder), folder, "f32", cache_dir) as found:
        title = "Tiny random model (a step takes a millisecond or two)"
        speed.against_bare(report, "tiny", title, found, tokens=400, rounds=15, goal=0.85)


def echo(report: Report, _cache_dir: Path, _scratch: Path) -> None:
    speed.echo_ceiling(report, "Echo engine over HTTP: the ceiling of the way")


def status(report: Report, _cache_dir: Path, _scratch: Path) -> None:
    config = '[models.second]\nsource = "smollm2"\n'
    patience.status_under_load(report, "GET /api/model/status, 8 streams running, a model loading", "smollm2", config)


def recovery(report: Report, cache_dir: Path, _scratch: Path) -> None:
    patience.recovery(report, "After kill -9 of the demo model's worker", "smollm2", demo_folder(cache_dir), "f32")


def structured(report: Report, cache_dir: Path, _scratch: Path) -> None:
    title = "Kept to a JSON schema, against free (demo model, f32, greedy)"
    grammars.cost(report, title, demo_folder(cache_dir), cache_dir)


PARTS: dict[str, Callable[[Report, Path, Path], None]] = {
    part.__name__: part for part in (demo, tiny, echo, status, recovery, structured)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--save", action="store_true", help=f"keep the numbers in {RESULTS}/<host>.json")
    parser.add_argument("--only", action="append", choices=PARTS, help="measure only this part (may be repeated)")
    args = parser.parse_args()
    started = time.monotonic()
    report = Report()
    report.console.print(" · ".join(f"{key} {value}" for key, value in machine().items()), soft_wrap=True)
    cache_dir = Settings().cache_path
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or PARTS:
            PARTS[name](report, cache_dir, Path(scratch))
    report.show_goals()
    report.console.print(f"{time.monotonic() - started:.0f} s in all")
    if args.save:
        report.console.print(f"kept in {report.save(RESULTS)}")


if __name__ == "__main__":
    main()
