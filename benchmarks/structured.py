"""What a grammar costs a token: the demo model free, and kept to a schema, in one process, alone and four at once."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.report import Report

TOKENS = 32
ROUNDS = 3
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "minItems": 1000,
}


def cost(report: Report, title: str, folder: Path, cache_dir: Path) -> None:
    """One table: milliseconds a step, free and constrained, and the difference for each constrained token."""
    command = [sys.executable, "-m", "benchmarks.structured", str(folder), str(cache_dir)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for what, value, unit in found:
        report.value(title, what, value, unit)
    report.show(title)


def main(folder: Path, cache_dir: Path) -> list[tuple[str, float, str]]:
    from forgellm.worker import blas

    engine_blas = blas.activate(cache_dir, True)  # before mlx is imported
    from forgellm.messages import EngineOptions, ModelSource
    from forgellm.worker.mlx_engine import MLXEngine

    engine = MLXEngine(blas=engine_blas)
    source = ModelSource(name="demo", kind="folder", path=str(folder))
    engine.load(source, EngineOptions(layout="f32", prefix_cache_bytes=0), lambda *_: None)
    started = time.perf_counter()
    step_s(engine, 1, is_kept=True, tokens=2)
    found = [("first schema of a load: the vocabulary, and two tokens", 1000 * (time.perf_counter() - started), "ms")]
    found.append(("a mask, and its application to the logits", 1e6 * mask_s(engine), "µs"))
    for requests in (1, 4):
        rounds = [[step_s(engine, requests, is_kept=k, tokens=TOKENS) for k in (False, True)] for _ in range(ROUNDS)]
        free, kept = (min(steps) for steps in zip(*rounds, strict=True))
        found += [
            (f"{requests} at once, free: a step", 1000 * free, "ms"),
            (f"{requests} at once, kept to a schema: a step", 1000 * kept, "ms"),
            (f"{requests} at once: more for each token", 1000 * (kept - free) / requests, "ms"),
        ]
    return found


def step_s(engine: Any, requests: int, *, is_kept: bool, tokens: int) -> float:
    """Median of the seconds between tokens, of `requests` greedy answers of `tokens` tokens each."""
    from forgellm.messages import Constraint, Request, Sampling

    constraint = Constraint(kind="json_schema", text=json.dumps(SCHEMA)) if is_kept else None
    sampling = Sampling(max_tokens=tokens)
    for number in range(requests):
        engine.add(
            Request(
                request_id=str(number),
                model="demo",
                prompt=f"{number}. A list of people as JSON:",
                constraint=constraint,
                sampling=sampling,
            )
        )
    times = []
    while engine.has_work():
        chunks, _ = engine.step()
        if len(chunks) == requests:
            times.append(time.perf_counter())
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    return gaps[len(gaps) // 2] if gaps else 0.0


def mask_s(engine: Any) -> float:
    """Seconds of one call of a guide in the middle of its grammar, with nothing to wait for."""
    import mlx.core as mx

    from forgellm.messages import Constraint
    from forgellm.worker.grammar import grammar

    constraint = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
    guide = engine._answers._guides.start(grammar(constraint, None, "never", ("", "")), "constraint")
    texts = engine._answers.texts
    tokens = [token for _ in range(60) for token in texts.tokens_of('{"name": "a naïve fox", "age": 12}, ')]
    logits = mx.zeros((1, engine._vocab_size))
    given = [mx.array([token]) for token in texts.tokens_of("[") + tokens]
    mx.eval(logits, given)
    started = time.perf_counter()
    mx.eval(guide(given[0], logits))  # the first call takes no token: it is the prompt's
    for last in given:
        mx.eval(guide(last, logits))
    return (time.perf_counter() - started) / (len(given) + 1)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
