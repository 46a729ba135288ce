"""`python real_limits.py FOLDER`: hangs and a long prefill under the default limits, at once; prints it.

A program of its own, so that it can run beside other tests: it mostly sleeps. Judges nothing: the tests do.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from forgellm import ModelConfig, Settings, Supervisor
from forgellm.errors import ForgeLLMError
from forgellm.messages import Timeouts
from forgellm.supervisor import Token, WorkerStatus
from invariants import sound_pool

PREFILL_S = 100.0
REQUEST_S = 5.0
MODELS: dict[str, dict[str, Any]] = {
    "gil": {"hang": "gil"},  # 15 s without a heartbeat
    "native": {"hang": "native"},  # 60 s without a step
    "python": {"hang": "python"},  # the same
    "prefill": {"prefill_s": PREFILL_S},
    "other": {"tokens_per_s": 10.0},
}
WORDS = " ".join(map(str, range(5000)))


def worker(pool: Supervisor, model: str) -> WorkerStatus:
    found = pool.status().model(model)
    assert found is not None
    return found.workers[0]


def hang(pool: Supervisor, model: str, found: dict[str, Any]) -> None:
    """Ask for the hang; note when its worker was replaced, in what words, and that it serves again."""
    life, began = worker(pool, model).life, time.monotonic()
    # It ends before its worker does, and so hangs no second life; its place stays taken meanwhile.
    poison = pool.generate(model, "hang", timeouts=Timeouts(total_s=REQUEST_S))
    pause = threading.Event()
    while worker(pool, model).life == life and time.monotonic() - began < PREFILL_S:
        pause.wait(0.05)
    took_s, reason = time.monotonic() - began, worker(pool, model).reason
    poison.close()
    log = reason.partition("the stacks of its threads are in ")[2].partition(".log")[0] + ".log"
    stacks = Path(log).read_text("utf-8") if log != ".log" else ""
    found[model] = {"took_s": took_s, "reason": reason, "stacks": stacks}


def prefill(pool: Supervisor, found: dict[str, Any]) -> None:
    generation, reports = pool.generate("prefill", "one two three"), set()
    tokens: list[Token] = []
    while not generation.has_ended:
        tokens += generation.take(0.5)
        reports.add(generation.prefill)
    found["prefill"] = {
        "took_s": generation.total_s,
        "text": "".join(token.text for token in [*tokens, *generation]),
        "restarts": worker(pool, "prefill").restarts,
        "reports": len(reports),
    }


def main() -> None:
    models = {name: ModelConfig(source="echo", options=knobs) for name, knobs in MODELS.items()}
    settings = Settings(models=models, cache_dir=sys.argv[1])
    assert (settings.hang_timeout_s, settings.progress_timeout_s) == (15.0, 60.0)
    found: dict[str, Any] = {}
    with sound_pool(Supervisor(settings)) as pool:
        for name in MODELS:
            pool.load(name)
        neighbour, gap_s, last = pool.generate("other", WORDS, max_tokens=10_000), 0.0, time.monotonic()
        threads = [threading.Thread(target=hang, args=(pool, name, found)) for name in ("gil", "native", "python")]
        threads.append(threading.Thread(target=prefill, args=(pool, found)))
        # The endless loop must not take a core from the tests that run beside this.
        os.setpriority(os.PRIO_PROCESS, worker(pool, "python").pid or 0, 19)
        for thread in threads:
            thread.start()
        for _ in neighbour:
            now = time.monotonic()
            gap_s, last = max(gap_s, now - last), now
            if not any(thread.is_alive() for thread in threads):
                break
        for name in ("gil", "native", "python"):
            try:
                found[name]["again"] = pool.generate(name, "still here").result().text
            except ForgeLLMError as error:
                found[name]["again"] = error.code
    left = [child.name() for child in psutil.Process().children() if "resource_tracker" not in child.cmdline()[-1]]
    print(json.dumps({**found, "gap_s": gap_s, "left": left}))


if __name__ == "__main__":
    main()
