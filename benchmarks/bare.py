"""mlx-lm in a bare process: BatchGenerator fed directly, token ids only. What everything is measured against.

Run as `python -m benchmarks.bare FOLDER LAYOUT CACHE`: says "ready", then answers each line of JSON (prompts,
tokens) on its standard input with one line of JSON (a Sample). It uses the BLAS and the weight layout of a
ForgeLLM worker.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample


class Bare:
    """The bare process, as a contender."""

    def __init__(self, folder: Path, layout: str, cache_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare", str(folder), layout, str(cache_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._out, self._in = self._process.stdout, self._process.stdin
        if self._out.readline().strip() != "ready":
            raise RuntimeError("the bare process did not start")

    def __call__(self, prompts: list[str], tokens: int) -> Sample:
        self._in.write(json.dumps([prompts, tokens]) + "\n")
        self._in.flush()
        total, wall_s, first = json.loads(self._out.readline())
        return Sample(total, wall_s, tuple(first))

    def close(self) -> None:
        self._in.close()
        self._process.wait(10)


def answer(model: Any, tokenizer: Any, prompts: list[str], tokens: int) -> Sample:
    from mlx_lm.generate import BatchGenerator

    started = time.perf_counter()
    ids = [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True) for p in prompts]
    generator = BatchGenerator(model, stop_tokens=[[token] for token in tokenizer.eos_token_ids])
    running = set(generator.insert(ids, max_tokens=[tokens] * len(ids)))
    first: dict[int, float] = {}
    total = 0
    while running:
        for response in generator.next()[1]:
            first.setdefault(response.uid, time.perf_counter() - started)
            total += 1
            if response.finish_reason is not None:
                running.discard(response.uid)
    wall_s = time.perf_counter() - started
    generator.close()
    return Sample(total, wall_s, tuple(first.values()))


def main(folder: Path, layout: str, cache_dir: Path) -> None:
    from forgellm.worker import blas

    blas.activate(cache_dir, layout == "f32")  # before mlx is imported
    import mlx.core as mx
    from mlx_lm.utils import load

    from forgellm.worker.layout import read_weights

    model, tokenizer = load(str(folder), lazy=True)[:2]
    on_cpu = mx.default_device() == mx.cpu
    read_weights(model, "f32" if layout == "f32" else "native", on_cpu=on_cpu, progress=lambda _: None)
    answer(model, tokenizer, ["Warm up."], 4)
    print("ready", flush=True)
    for line in sys.stdin:
        sample = answer(model, tokenizer, *json.loads(line))
        print(json.dumps([sample.tokens, sample.wall_s, sample.first_token_s]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
