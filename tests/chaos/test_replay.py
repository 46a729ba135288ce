"""Real MLX under kills: every answer is the one that an undisturbed run gives, greedy and sampled."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.measure import percentile, wait_until
from forgellm import Generation, Settings, Supervisor
from forgellm.states import WorkerState
from forgellm.supervisor import WorkerStatus
from invariants import sound_pool

pytestmark = [pytest.mark.model, pytest.mark.chaos]

STREAMS = 20
DEADLINE_S = 60.0
SETTINGS: dict[str, Any] = {"backoff_initial_s": 0.0, "backoff_max_s": 0.0}


class Reader(threading.Thread):
    """Reads one answer; knows its longest pause between two tokens."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(daemon=True)
        self.generation = generation
        self.text = ""
        self.tokens = 0
        self.pause_s = 0.0
        self.start()

    def run(self) -> None:
        last = time.monotonic()
        for token in self.generation:
            now = time.monotonic()
            self.pause_s, last = max(self.pause_s, now - last) if self.tokens else 0.0, now
            self.text += token.text
            self.tokens += len(token.token_ids)


def worker(pool: Supervisor) -> WorkerStatus:
    return pool.status().models[0].workers[0]


def ask(pool: Supervisor, model: str, tokens: int, numbers: Iterable[int] = range(STREAMS)) -> list[Reader]:
    """Half of them greedy, half sampled with a seed of their own."""
    found = []
    for number in numbers:
        how: dict[str, Any] = {"temperature": 1.0, "seed": number} if number % 2 else {"temperature": 0.0}
        prompt = f"{number}. Tell a story about a fox and a small model."
        found.append(Reader(pool.generate(model, prompt, max_tokens=tokens, **how)))
    return found


def texts(readers: list[Reader]) -> list[str]:
    for reader in readers:
        reader.join(DEADLINE_S)
        assert not reader.is_alive()
    return [reader.text for reader in readers]


def replay(cache: Path, model: str, tokens: int, kills: int, bare_load: Callable[[], float]) -> None:
    """An undisturbed run, then one in which the worker is killed at a random token of each of `kills` streams. One that
    had ended before it was struck (some are of 14 tokens) is asked for again."""
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    with sound_pool(Supervisor(Settings(cache_dir=str(cache), **SETTINGS))) as pool:
        name = pool.load(model, timeout_s=DEADLINE_S).model
        alone = ask(pool, name, tokens)
        undisturbed = texts(alone)
        readers = ask(pool, name, tokens)
        places = {n: dice.randint(1, max(1, alone[n].tokens * 3 // 4)) for n in dice.sample(range(STREAMS), kills)}
        strikes = []
        while places:
            wait_until(lambda: any(readers[n].tokens >= place for n, place in places.items()), DEADLINE_S)
            due = [n for n, place in places.items() if readers[n].tokens >= place]
            life = worker(pool).life
            os.kill(worker(pool).pid or 0, signal.SIGKILL)
            struck = [n for n in due if readers[n].is_alive()]
            strikes.append([(places.pop(n), readers[n].tokens) for n in struck])
            for n in set(due) - set(struck):
                assert readers[n].text == undisturbed[n], f"seed {seed}"
                (readers[n],) = ask(pool, name, tokens, [n])
            wait_until(
                lambda life=life: worker(pool).life != life and worker(pool).state is WorkerState.READY,  # type: ignore[misc]
                DEADLINE_S,
            )
        assert texts(readers) == undisturbed, f"seed {seed}"
        assert worker(pool).restarts == len(strikes)
    pauses = [reader.pause_s for reader in readers]
    longest = f"pause p50 {percentile(pauses, 0.5):.2f} s, p99 {percentile(pauses, 0.99):.2f} s"
    print(f"\n{name}: {len(strikes)} kills for {kills} streams, {longest}; a bare mlx_lm.load {bare_load():.2f} s")
    print(f"seed {seed}; (token drawn, tokens had) of each kill: {strikes}")


def bare_load(folder: Path) -> float:
    """Seconds of mlx_lm.load of the same files, libraries imported already."""
    import mlx_lm

    began = time.monotonic()
    mlx_lm.load(str(folder))
    return time.monotonic() - began


def test_chaos_009_texts_are_those_of_an_undisturbed_run_however_often_the_worker_is_killed(tmp_path: Path) -> None:
    import tiny_model

    folder = tiny_model.build(tmp_path / "tiny")
    replay(tmp_path, str(folder), 150, 3, lambda: bare_load(folder))


@pytest.mark.timeout(600)
def test_the_demo_model_goes_on_where_it_was_too() -> None:
    from benchmarks.models import demo_folder

    cache = Settings().cache_path
    assert psutil.virtual_memory().available > 3 << 30
    replay(cache, "smollm2", 24, STREAMS, lambda: bare_load(demo_folder(cache)))
