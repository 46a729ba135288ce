"""The two models that are measured, as folders that mlx-lm loads; made in a process of their own.

The process that measures holds a Supervisor, so it must never import mlx.
"""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"


def demo_folder(cache_dir: Path) -> Path:
    """SmolLM2-135M, fetched and converted into the cache if it is not there: 4-bit."""
    return _made("demo", cache_dir)


def tiny_folder(parent: Path) -> Path:
    """Random weights; a step takes about a millisecond, so that everything around the model shows."""
    return _made("tiny", parent)


def _made(which: str, place: Path) -> Path:
    command = [sys.executable, "-m", "benchmarks.models", which, str(place)]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def main(which: str, place: Path) -> Path:
    if which == "demo":
        from forgellm.catalog.demo import fetch
        from forgellm.worker.gguf import converted

        return converted(fetch(place, lambda *_: None), place, lambda *_: None)
    sys.path.insert(0, str(TESTS))
    from tiny_model import build

    return build(place / "tiny", context=2048)


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2])))
