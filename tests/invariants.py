"""What must hold whatever happened (tests/chaos): one helper around a pool, one around a fault of a daemon.

By their numbers there: I1 every request ends, once; I2 health answers; I3 a bystander's stream has no gap; I4 nothing
is held that was not before; I5 what is reserved is of workers that there are; I6 only legal moves; I8 no token is lost
or repeated, and texts are those of an undisturbed run, or their beginnings; I9 no prompt is in a log; I10 errors are
JSON with a code. I7, budgets, is the pool's to keep: its machines (test_pool_machine, test_memory_machine) show it.
"""

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx2
import psutil

from daemons import Daemon
from forgellm import Supervisor
from forgellm.api.errors import STATUS_BY_CODE
from forgellm.errors import ForgeLLMError
from forgellm.messages import Prefill, Request
from forgellm.states import LEGAL_MOVES, WorkerState
from forgellm.supervisor.effects import Announce, Effect
from waiting import DEADLINE_S, wait_until

BACK_S = 5.0
GAP_S = 1.0
WORDS = " ".join(map(str, range(20_000)))
HEALTH_EVERY_S = 0.05
HEALTH_S = 0.25  # of a daemon
ANSWER_S = 1.0  # of a supervisor in the process of the tests, whose threads and garbage collections hold it up
TELLING = 12  # characters of a prompt that are in a log for no other reason


class Ledger:
    """What a pool was asked for and what it delivers, seen where it is delivered; looks, and changes nothing.

    The echo engine's tokens are the words of the prompt, numbered from 0: so each answer of it can be judged."""

    def __init__(self, pool: Supervisor) -> None:
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.prompts: set[str] = set()  # all that a log could be searched for
        self._prompts: dict[str, str] = {}  # of what is still being answered
        self._tokens: Counter[str] = Counter()
        self._chars: Counter[str] = Counter()
        self._models = pool.settings.models
        self.moves: list[Announce] = []
        self._submit, self._deliver, self._watch = pool._submit, pool._deliveries.deliver, pool._watches.take
        pool._submit = self.submit  # type: ignore[method-assign]
        pool._deliveries.deliver = self.deliver  # type: ignore[method-assign]
        pool._watches.take = self.watch  # type: ignore[method-assign]

    def submit(self, request: Request, missing: Any, now: float) -> list[Effect]:
        prompt = request.messages[-1]["content"] if request.messages else request.prompt
        config = self._models.get(request.model)
        is_echo = config is not None and config.source == "echo" and not config.options.get("text")
        is_answered = request.inputs is None and not request.resume and not request.count_only
        if isinstance(prompt, str) and is_echo and is_answered:
            self._prompts[request.request_id] = prompt
        if isinstance(prompt, str) and len(prompt) >= TELLING:
            self.prompts.add(prompt)
        return self._submit(request, missing, now)

    def watch(self, effects: Iterable[Effect]) -> None:
        """All of them: a follower that reads only at the end is dropped after 256."""
        effects = list(effects)
        self.moves += [each for each in effects if isinstance(each, Announce)]
        self._watch(effects)

    def deliver(self, to: str, news: Any) -> None:
        is_end = news[4] is not None if isinstance(news, tuple) else not isinstance(news, Prefill)
        self.ends[to] += is_end
        if isinstance(news, ForgeLLMError) and (news.code not in STATUS_BY_CODE or not news.message):
            self.wrong.append(f"{to} got {news!r}, which no client understands")
        prompt = self._prompts.get(to)
        if prompt is not None and isinstance(news, tuple):
            _, text, token_ids, _, finish_reason, _, _ = news
            expected = tuple(range(self._tokens[to], self._tokens[to] + len(token_ids)))
            if token_ids != expected or not prompt.startswith(text, self._chars[to]):
                self.wrong.append(f"{to} got {text!r} {token_ids} where {expected} are next")
            self._tokens[to] += len(token_ids)
            self._chars[to] += len(text)
            if finish_reason == "stop" and self._chars[to] != len(prompt):
                self.wrong.append(f"{to} ended after {self._chars[to]} characters of {len(prompt)}")
        if is_end:
            self._prompts.pop(to, None)
        self._deliver(to, news)


@contextmanager
def sound_pool(pool: Supervisor, *, stands_still: bool = False) -> Iterator[Supervisor]:
    """Run a pool for a test: each request and each ticket got one end (I1), the supervisor's thread answers all the
    time, which is what health asks (I2), memory is reserved in the end for workers that live, and for nobody after the
    stop (I5), each move is legal (I6), the echo engine's answers are whole (I8), no log holds a prompt (I9), and every
    error is one that clients know (I10). `stands_still`: the test has the supervisor's thread stand still."""
    ledger = Ledger(pool)
    logged = _Logged()
    logging.getLogger("forgellm").addHandler(logged)
    try:
        with pool, _answering(pool, ANSWER_S if not stands_still else math.inf):
            yield pool
            wait_until(lambda: _known(pool) == _living(pool), BACK_S)
    finally:
        logging.getLogger("forgellm").removeHandler(logged)
    for text in (*logged.lines, *(each.read_text("utf-8", "replace") for each in pool.settings.log_path.glob("*.log"))):
        assert [prompt for prompt in ledger.prompts if prompt in text] == []
    assert (pool.status().reserved_bytes, pool.status().models) == (0, ())
    assert pool._deliveries._readers == {}
    assert {to: count for to, count in ledger.ends.items() if to and count > 1} == {}
    assert ledger.wrong == []
    states = {move.worker: move.old for move in reversed(ledger.moves)}
    for move in ledger.moves:
        assert move.new in LEGAL_MOVES[move.old], move
        assert states[move.worker] is move.old, move
        states[move.worker] = move.new


class _Logged(logging.Handler):
    """Keeps what this process logs."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def _answering(pool: Supervisor, limit_s: float) -> Iterator[None]:
    """The supervisor's thread answers within `limit_s`, up to the end of the block or of the supervisor."""
    is_over = threading.Event()
    times: list[float] = []

    def probe() -> None:
        while not is_over.wait(HEALTH_EVERY_S):
            began = time.monotonic()
            if not pool.is_alive(DEADLINE_S):
                return
            times.append(time.monotonic() - began)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(DEADLINE_S)
    assert max(times, default=0.0) < limit_s


def _known(pool: Supervisor) -> set[int]:
    """The lives that memory is reserved for, and those on their way out."""
    life = pool._pool._life
    return {*life.slots, *life._doomed, *([life.spare.life] if life.spare else [])}


def _living(pool: Supervisor) -> set[int]:
    return set(pool._loop.crew.pids()) if pool._loop.crew else set()


@contextmanager
def bystander(pool: Supervisor, model: str) -> Iterator[None]:
    """An echo model's stream beside what is tested: it gets on, without a gap of a second (I3)."""
    pool.load(model)
    generation = pool.generate(model, WORDS, max_tokens=100_000)
    gaps: list[float] = []

    def read() -> None:
        last = time.monotonic()
        for _ in generation:
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: len(gaps) > 1)
        yield
    finally:
        generation.close()
        reader.join(BACK_S)
    assert len(gaps) > 1
    assert max(gaps) < GAP_S


BYSTANDER = '[models.bystander]\nsource = "echo"\noptions = {tokens_per_s = 20.0}\n'
"""What the settings of a sound daemon have, for sound_daemon's own stream."""


@contextmanager
def sound_daemon(served: Daemon, *, turns_away: bool = False) -> Iterator[None]:
    """Around a fault of a daemon: its health answers within HEALTH_S all the time (I2), another model's stream never
    stands still for a second (I3) and loses no word (I8), each move is legal (I6). Within BACK_S after it the daemon
    holds what it held (I4), its models are ready and idle (I1), its errors are JSON with a code (I10), its log has no
    traceback. `turns_away`: for want of descriptors it may refuse new connections."""
    process = psutil.Process(served.process.pid)
    served.http.get("/healthz")
    loaded = served.http.post("/api/model/load", json={"model": "bystander", "wait": True})
    assert loaded.status_code == 200, loaded.text
    before = _held(process)
    with _legal_moves(served), _stream_beside(served), _healthy(served, turns_away=turns_away):
        yield
    _wait_as_before(served, process, before)
    missing = served.http.get("/no/such/path")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "Traceback" not in (served.folder / "daemon.log").read_text()


@contextmanager
def _healthy(served: Daemon, *, turns_away: bool) -> Iterator[None]:
    """Two probes: one keeps its connection, the other one connects anew each time, as curl does."""
    is_over, address = threading.Event(), served.url.removeprefix("http://")

    def probe(*, anew: bool) -> list[tuple[float, int]]:
        """The seconds and the status of each answer."""
        found = list[tuple[float, int]]()
        with closing(HTTPConnection(address, timeout=20)) as http:
            while not (found and is_over.wait(HEALTH_EVERY_S)):  # once at least
                if anew:
                    http.close()
                began = time.monotonic()
                http.request("GET", "/healthz")
                with http.getresponse() as answer:
                    answer.read()
                found.append((time.monotonic() - began, answer.status))
        return found

    with ThreadPoolExecutor(2) as threads:
        kept, new = threads.submit(probe, anew=False), threads.submit(probe, anew=True)
        try:
            yield
        finally:
            is_over.set()
    assert {status for _, status in kept.result()} == {200}
    assert {status for _, status in new.result()} <= ({200, 503} if turns_away else {200})
    assert max(kept.result())[0] < HEALTH_S
    assert max(new.result())[0] < HEALTH_S


@contextmanager
def _stream_beside(served: Daemon) -> Iterator[None]:
    """A stream of the bystander, up to the end of the block; then the model is unloaded."""
    is_over, has_begun, texts, gaps = threading.Event(), threading.Event(), list[str](), list[float]()
    body = {"model": "bystander", "prompt": WORDS, "stream": True, "max_tokens": 100_000}

    def read() -> None:
        with httpx2.Client(base_url=served.url, timeout=20, trust_env=False) as http:  # up to 1.2 s on a busy machine
            last = time.monotonic()
            with http.stream("POST", "/api/model/generate", json=body) as answer:
                for line in answer.iter_lines():
                    gaps.append(time.monotonic() - last)
                    last = time.monotonic()
                    texts.append(json.loads(line).get("text", ""))
                    has_begun.set()
                    if is_over.is_set():
                        break

    reader = threading.Thread(target=read)
    reader.start()
    assert has_begun.wait(DEADLINE_S)
    try:
        yield
    finally:
        is_over.set()
        reader.join(DEADLINE_S)
        served.http.post("/api/model/unload", json={"model": "bystander"})
    assert not reader.is_alive()
    assert max(gaps) < GAP_S
    assert "".join(texts) != ""
    assert WORDS.startswith("".join(texts))


@contextmanager
def _legal_moves(served: Daemon) -> Iterator[None]:
    """Follows the daemon's events, from before the block until the bystander was unloaded."""
    has_begun, moves, ends = threading.Event(), list[dict[str, Any]](), list[str]()

    def follow() -> None:
        kind = ""
        with httpx2.stream("GET", f"{served.url}/api/events", timeout=DEADLINE_S, trust_env=False) as answer:
            for line in answer.iter_lines():
                has_begun.set()
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "state":
                    moves.append(json.loads(value))
                    if (moves[-1]["model"], moves[-1]["to"]) == ("bystander", WorkerState.STOPPED):
                        break
                elif name == "data" and kind == "end":
                    ends.append(value)

    follower = threading.Thread(target=follow)
    follower.start()
    assert has_begun.wait(DEADLINE_S)
    try:
        yield
    finally:
        follower.join(DEADLINE_S)
    assert not follower.is_alive()
    assert ends == []
    states: dict[str, str] = {}
    for move in moves:
        assert move["to"] in LEGAL_MOVES[WorkerState(move["from"])], move
        assert states.get(move["worker"], move["from"]) == move["from"], move
        states[move["worker"]] = move["to"]


def _wait_as_before(served: Daemon, process: psutil.Process, before: dict[str, int]) -> None:
    deadline = time.monotonic() + BACK_S
    pause = threading.Event()
    while True:
        now = _held(process)
        more = {name: (before[name], now[name]) for name in now if now[name] > before[name]}
        models = served.http.get("/api/model/status").json()["models"]
        if not more and all((m["state"], m["in_flight"], m["queue_depth"]) == ("ready", 0, 0) for m in models):
            return
        assert time.monotonic() < deadline, (more, models)
        pause.wait(0.05)


def _held(daemon: psutil.Process) -> dict[str, int]:
    alive = [each for each in daemon.children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    return {"descriptors": daemon.num_fds(), "threads": daemon.num_threads(), "processes": len(alive)}
