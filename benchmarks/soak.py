"""`python -m benchmarks.soak --seconds N [--seed S]`: clients stream while a killer strikes workers at random.

Every text is compared with the undisturbed one. Decides nothing about the pool; a seed replays the same strikes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import percentile, wait_until
from benchmarks.report import machine
from forgellm import ModelConfig, Settings, Supervisor
from forgellm.api.app import create_app
from forgellm.api.gate import Gate
from forgellm.api.http_server import HttpServer
from forgellm.cli.client import Client
from forgellm.config import load_settings
from forgellm.control.client import ModelManager
from forgellm.errors import ForgeLLMError
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus

Pool = Supervisor | ModelManager

REPLICAS = {"a": 2, "b": 2, "c": 1}
HTTP_CLIENTS = 5
PYTHON_CLIENTS = 5
TOKENS_PER_S = 80.0
STRIKES = (signal.SIGKILL,) * 6 + (signal.SIGSEGV,) * 3 + (signal.SIGSTOP,)
CALM_S = 0.5
END_S = 60.0
SETTINGS: dict[str, Any] = {
    "port": 0,
    "crash_budget": 1_000_000,  # a strike a second is more than a real pool should forgive
    "backoff_initial_s": 0.0,
    "backoff_max_s": 0.0,
    "hang_timeout_s": 2.0,
}


@dataclass(frozen=True, slots=True)
class Strike:
    """A signal, how long after the one before, and to whom (an index into the workers that have a process)."""

    after_s: float
    number: signal.Signals
    victim: int


def schedule(seed: int) -> Iterator[Strike]:
    """Strikes without end, one a second on average."""
    dice = random.Random(seed)
    while True:
        yield Strike(min(4.0, 0.3 + dice.expovariate(1 / 0.7)), dice.choice(STRIKES), dice.randrange(1 << 16))


@dataclass
class Tally:
    """What the clients saw. One writer at a time."""

    finished: int = 0
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    different: int = 0
    pauses_s: list[float] = field(default_factory=list)  # the longest between two pieces, of each request
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, prompt: str, text: str, pause_s: float) -> None:
        with self.lock:
            self.finished += 1
            self.tokens += len(text.split(" "))
            self.different += text != prompt
            self.pauses_s.append(pause_s)

    def lose(self, error: ForgeLLMError) -> None:
        with self.lock:
            self.errors[error.code] += 1


Pieces = Callable[[str, str], Iterator[str]]
"""Ask a model, and get the pieces of its answer as they come."""


def client(ask: Pieces, seed: int, tally: Tally, is_over: threading.Event) -> None:
    """Ask again and again. The echo engine says the prompt back: that is the undisturbed text."""
    dice = random.Random(seed)
    while not is_over.is_set():
        prompt = " ".join(str(dice.randrange(1 << 20)) for _ in range(dice.randrange(20, 240)))
        text, longest_s, last = "", 0.0, time.monotonic()
        try:
            for piece in ask(dice.choice(list(REPLICAS)), prompt):
                now = time.monotonic()
                text, longest_s, last = text + piece, max(longest_s, now - last), now
            tally.add(prompt, text, longest_s)
        except ForgeLLMError as error:
            tally.lose(error)


class Killer:
    """Carries out the schedule, but for one rule: two crashes of one request in a row are that request's fault, and the
    pool must end it. So while a death is not yet survived, a strike that looks like a crash (SIGSEGV, or the SIGKILL
    that follows a hang) is made a plain SIGKILL, which looks like what it is: somebody outside."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self._pool = pool
        self._schedule = schedule(seed)
        self._stopped: set[int] = set()  # lives
        self.done: Counter[str] = Counter()

    def run(self, is_over: threading.Event) -> None:
        for strike in self._schedule:
            if is_over.wait(strike.after_s):
                return
            workers = [worker for worker in workers_of(self._pool) if worker.pid is not None]
            if workers:
                self._strike(strike, workers)

    def _strike(self, strike: Strike, workers: list[WorkerStatus]) -> None:
        now = time.monotonic()
        victim = workers[strike.victim % len(workers)]
        self._stopped &= {worker.life for worker in workers}
        calm = [w for w in workers if w.state is WorkerState.READY and now - w.since > CALM_S]
        is_calm = len(calm) == sum(REPLICAS.values()) and not self._stopped
        number = strike.number if is_calm else signal.SIGKILL
        if number is signal.SIGSTOP:
            self._stopped.add(victim.life)
        try:
            os.killpg(victim.pid or 0, number)
        except ProcessLookupError:
            return  # it is dead already, and the pool is about to hear of it
        self.done[f"{number.name}, {victim.state}"] += 1


def workers_of(pool: Pool) -> list[WorkerStatus]:
    """All replicas, in a stable order."""
    return [worker for model in sorted(pool.status().models, key=lambda m: m.name) for worker in model.workers]


def held(pid: int | None = None) -> dict[str, int]:
    """What a process (None: this one) holds now; semaphores only where the system lists them."""
    maps = Path(f"/proc/{pid or 'self'}/maps")
    mapped = maps.read_text("utf-8").splitlines() if maps.exists() else []
    me = psutil.Process(pid)
    return {
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
        "threads": me.num_threads(),
        "semaphores": len({line.split()[5] for line in mapped if "/sem." in line}),
    }


def soak(seconds: float, seed: int, *, in_daemon: bool = False) -> dict[str, Any]:
    """Run it all in this process: the pool, its HTTP server, the clients, the killer; or (`in_daemon`) the pool and the
    server in a daemon, and half of the clients over its control socket. Returns what was found."""
    resource_tracker.ensure_running()
    tally, is_over = Tally(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        before = held()
        with (_daemon if in_daemon else _serving)(folder) as (pool, url, pid):
            killer = Killer(pool, seed)
            _settle(pool)
            for model in REPLICAS:
                "".join(_over_http(url)(model, "warm up"))
            baseline = held(pid)
            threads = [_thread(killer.run, is_over)]
            threads += [_thread(client, _over_http(url), seed + n, tally, is_over) for n in range(HTTP_CLIENTS)]
            threads += [_thread(client, _in_python(pool), seed - 1 - n, tally, is_over) for n in range(PYTHON_CLIENTS)]
            rss = psutil.Process(pid).memory_info().rss
            time.sleep(seconds)
            is_over.set()
            unfinished = [thread.name for thread in threads if not _ended(thread)]
            _settle(pool)
            grown = _more_than(baseline, pid)
            rss = psutil.Process(pid).memory_info().rss - rss
        left = _more_than(before)
    return {
        "seed": seed,
        "seconds": seconds,
        "strikes": dict(sorted(killer.done.items())),
        "requests": tally.finished,
        "tokens": tally.tokens,
        "lost": sum(tally.errors.values()) + len(unfinished),
        "errors": dict(tally.errors),
        "different": tally.different,
        "pause_p50_s": round(percentile(tally.pauses_s, 0.5), 3),
        "pause_p99_s": round(percentile(tally.pauses_s, 0.99), 3),
        "pause_max_s": round(max(tally.pauses_s), 3),
        "leaks": grown,
        "left_after_stop": {name: count for name, count in left.items() if name in {"processes", "threads"}},
        "supervisor_growth_mb": round(rss / (1 << 20), 1),
    }


def is_good(found: dict[str, Any]) -> bool:
    """Nothing lost, nothing different, nothing left; and something was tried."""
    wrong = found["lost"] or found["different"] or found["leaks"] or found["left_after_stop"]
    return not wrong and bool(found["strikes"]) and bool(found["requests"])


@contextmanager
def _serving(folder: str) -> Iterator[tuple[Pool, str, int]]:
    options = {"tokens_per_s": TOKENS_PER_S, "prefill_s": 0.05, "load_s": 0.1}
    models = {name: ModelConfig(source="echo", replicas=count, options=options) for name, count in REPLICAS.items()}
    settings = Settings(models=models, cache_dir=folder, **SETTINGS)
    gate = Gate(settings.max_streams)
    with Supervisor(settings) as pool:
        server = HttpServer(create_app(pool, settings, gate), settings, gate)
        server.start()
        try:
            for model in REPLICAS:
                pool.load(model, timeout_s=END_S)
            yield pool, server.url, os.getpid()
        finally:
            server.stop()


@contextmanager
def _daemon(folder: str) -> Iterator[tuple[Pool, str, int]]:
    """The same in a process of its own, reached over HTTP and its control socket."""
    knobs = {"cache_dir": folder, "state_dir": folder, **SETTINGS}
    lines = [f"{name} = {json.dumps(value)}" for name, value in knobs.items()]
    for name, count in REPLICAS.items():
        options = f"tokens_per_s = {TOKENS_PER_S}, prefill_s = 0.05, load_s = 0.1"
        lines += [f"[models.{name}]", 'source = "echo"', f"replicas = {count}", f"options = {{ {options} }}"]
    config = Path(folder) / "soak.toml"
    config.write_text("\n".join(lines), "utf-8")
    command = [sys.executable, "-m", "forgellm.daemon", "--config", str(config), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            with ModelManager(load_settings(config), autostart=False) as pool:
                for model in REPLICAS:
                    pool.load(model, timeout_s=END_S)
                yield pool, url, process.pid
        finally:
            process.terminate()
            process.wait(END_S)


def _over_http(url: str) -> Pieces:
    def ask(model: str, prompt: str) -> Iterator[str]:
        with Client(url) as http:
            for event in http.generate({"model": model, "prompt": prompt, "max_tokens": 1000}):
                if event["type"] == "chunk":
                    yield event["text"]

    return ask


def _in_python(pool: Pool) -> Pieces:
    def ask(model: str, prompt: str) -> Iterator[str]:
        for token in pool.generate(model, prompt, max_tokens=1000):
            yield token.text

    return ask


def _settle(pool: Pool) -> None:
    """Wait until all workers are ready and idle, and the spare is warm."""
    ready = WorkerState.READY
    wait_until(lambda: all(w.state is ready and not w.in_flight for w in workers_of(pool)), END_S)
    wait_until(lambda: pool.status().spare_is_warm, END_S)


def _more_than(before: dict[str, int], pid: int | None = None) -> dict[str, int]:
    """What is held beyond `before`, after a while for the system to let go of it."""
    deadline = time.monotonic() + 5.0
    while True:
        more = {name: count - before[name] for name, count in held(pid).items() if count > before[name]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.05)


def _thread(target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=target.__name__, daemon=True)
    thread.start()
    return thread


def _ended(thread: threading.Thread) -> bool:
    thread.join(END_S)
    return not thread.is_alive()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="replay the strikes of an earlier run")
    parser.add_argument("--daemon", action="store_true", help="strike the workers of a daemon, in a process of its own")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    seed = random.randrange(1 << 30) if args.seed is None else args.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    found = soak(args.seconds, seed, in_daemon=args.daemon)
    if args.json:
        print(json.dumps(found))
    else:
        where = machine()
        print(f"{datetime.now(UTC):%Y-%m-%d}, {where['cores']} cores, {where['cpu']}, Python {where['python']}")
        table = Table("what", "found")
        for name, value in found.items():
            table.add_row(name.replace("_", " "), json.dumps(value) if isinstance(value, dict) else str(value))
        Console(width=110).print(table)
    sys.exit(0 if is_good(found) else 1)


if __name__ == "__main__":
    main()
