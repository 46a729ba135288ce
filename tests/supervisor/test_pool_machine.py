"""The pool under anything in any order: loads, requests, deaths, time; what must hold is checked after each call."""

import math
import os
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from world import World, order

from forgellm.config import Settings
from forgellm.errors import ForgeLLMError, RequestCrashesWorker
from forgellm.messages import (
    Abort,
    Bye,
    Chunk,
    EngineOptions,
    FinishReason,
    Generate,
    Hello,
    Imported,
    Load,
    LoadFailed,
    Loading,
    Memory,
    Prefill,
    Ready,
    RequestFailed,
    Unload,
    Usage,
)
from forgellm.states import HAS_PROCESS, LEGAL_MOVES, WorkerState
from forgellm.supervisor.clocks import Pulse
from forgellm.supervisor.effects import Announce, Deliver, Effect, Send, Signal, Spawn
from forgellm.supervisor.slots import DeathCause
from model_info import INFO

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "200"))  # CI tries more of them
MAX_QUEUE = 3
KILLS = (-signal.SIGKILL, -signal.SIGTERM)
EXIT_CODES = (*KILLS, -signal.SIGSEGV, -signal.SIGABRT, 0, 1, 64, 65, 66)
MODELS = ("a", "b")
PICK = st.integers(0, 11)
KNOBS: list[dict[str, Any]] = [
    {},
    {"max_queue": 1},
    {"spare": True},
    {"spare": False},
    {"recycle_after_requests": 1},
    {"crash_budget": 1},
    {"drain_timeout_s": 0.0},
]
PAUSES = st.sampled_from([0.0, 0.1, 1.0, 6.0, 40.0, 400.0])


@dataclass
class Worker:
    """A process as this test plays it: it knows what it was told, and never more than it was told."""

    options: EngineOptions | None = None  # of the Load that waits for it, or that it has carried out
    said: int = 0  # of the three words before its model: Hello, Imported, Loading
    is_ready: bool = False
    is_failed: bool = False
    running: dict[str, int] = field(default_factory=dict)  # request -> tokens so far
    aborted: set[str] = field(default_factory=set)
    must_go: bool = False  # Unload, SIGTERM or SIGKILL
    is_condemned: bool = False  # SIGKILL, or a hang for which it is next
    beats: int = 0
    steps: int = 0


@dataclass
class Asked:
    """A request as its client sees it."""

    model: str
    client: str = ""
    tokens: list[int] = field(default_factory=list)
    endings: int = 0
    runs: int = 0
    crashes_since_token: int = 0
    is_aborted: bool = False


class CheckedWorld(World):
    """A world that checks each effect the moment it is ordered."""

    make_order = staticmethod(order)

    def __init__(self, **knobs: Any) -> None:
        super().__init__(**knobs)
        self.knobs = {"spare": False, **knobs}
        self.workers: dict[int, Worker] = {}
        self.requests: dict[str, Asked] = {}
        self.tickets: dict[str, int] = {}
        self.states: dict[str, WorkerState] = {}

    def do(self, effects: Iterable[Effect]) -> list[Effect]:
        effects = list(effects)
        for effect in effects:
            match effect:
                case Spawn(life):
                    assert life not in self.workers, "a life's number was used twice"
                    self.workers[life] = Worker()
                    self.alive.append(life)
                case Send(life, command):
                    self._told(self.workers[life], command)
                case Signal(life, number):
                    self.workers[life].must_go |= number in {signal.SIGTERM, signal.SIGKILL}
                    self.workers[life].is_condemned |= number in {signal.SIGCONT, signal.SIGKILL}
                case Deliver(to, news):
                    self._delivered(to, news)
                case Announce(worker, _, old, new):
                    assert old == self.states.get(worker, WorkerState.STOPPED), "a move from where it was not"
                    assert new in LEGAL_MOVES[old]
                    self.states[worker] = new
        return effects

    def _told(self, worker: Worker, command: object) -> None:
        match command:
            case Load(_, options):
                assert worker.options is None, "a worker holds one model"
                worker.options = options
            case Generate(request):
                asked = self.requests[request.request_id]
                assert worker.is_ready
                assert not worker.must_go, "a request was sent to a worker that goes"
                assert not asked.endings
                assert not asked.is_aborted, "it is run again for nobody"
                assert not any(request.request_id in other.running for other in self.workers.values())
                assert list(request.resume) == asked.tokens, "it goes on after other tokens than its client has"
                asked.runs += 1
                worker.running[request.request_id] = len(asked.tokens)
                assert worker.options is not None
                assert len(worker.running) <= worker.options.max_batch
            case Abort(request_id):
                worker.aborted.add(request_id)
            case Unload():
                worker.must_go = True

    def _delivered(self, to: str, news: object) -> None:
        asked = self.requests.get(to)
        if not to:
            return  # of a load that a reload asks for: nobody waits
        if asked is None:
            self.tickets[to] += 1
            assert self.tickets[to] == 1, "a ticket was answered twice"
            return
        assert not asked.endings, f"after its end a request got {news}"
        if isinstance(news, ForgeLLMError):
            asked.endings += 1
            assert not isinstance(news, RequestCrashesWorker) or asked.crashes_since_token >= 2
        elif isinstance(news, tuple):
            asked.tokens += news[2]
            asked.crashes_since_token = 0
            asked.endings += news[4] is not None

    # what users do

    def load(self, name: str = "a", ticket: str = "load", **kwargs: Any) -> list[Effect]:
        return self.do(self.pool.load(self.make_order(name, **kwargs), ticket, self.now))

    def reload(self, name: str, change: dict[str, Any], knobs: dict[str, Any], *, removed: bool) -> None:
        """Other settings, and another order of a model if it is loaded, as the supervisor asks for them."""
        self.knobs = {**self.knobs, **knobs}
        path = change.get("path")
        wanted = self.make_order(name, **{key: value for key, value in change.items() if key != "path"})
        wanted = replace(wanted, source=replace(wanted.source, path=path))
        settings = Settings(**self.knobs)
        orders = [wanted] if change and not removed and name in self.pool.orders().by_name else []
        gone = [name] if removed else []
        budget = settings.memory_budget_bytes
        self.do(self.pool.reload(settings, budget, orders, self.now, stale=[name] if change else [], removed=gone))

    # what workers do

    def says_next(self, life: int) -> None:
        """One word more on the way to being ready."""
        worker = self.workers[life]
        if worker.said < 2:
            self.say(life, (Hello(1000 + life), Imported())[worker.said])
            worker.said += 1
        elif worker.options is not None and not worker.is_ready and worker.said == 2:
            worker.said += 1
            self.say(life, Loading(0.5, "reading weights"))
        elif worker.options is not None and not worker.is_ready and not worker.is_failed:
            worker.is_ready = True
            self.say(life, Ready(INFO, 7, 3))

    def step(self, life: int, finish: FinishReason | None = None) -> None:
        """A token for every request in the batch, the aborted ones' last chunk; `finish` ends the first of them."""
        worker, chunks = self.workers[life], list[Chunk]()
        for place, request_id in enumerate(list(worker.running)):
            position = worker.running[request_id]
            reason = "abort" if request_id in worker.aborted else finish if place == 0 else None
            token_ids = () if reason == "abort" else (position,)
            usage = Usage(prompt_tokens=1, completion_tokens=position + 1) if reason else None
            chunks.append((request_id, "t", token_ids, None, reason, usage, None))
            worker.running[request_id] += 1
            if reason:
                del worker.running[request_id]
        if chunks:
            self.say(life, tuple(chunks))

    def dies(self, life: int, code: int, cause: DeathCause | None = None) -> None:
        worker = self.workers.pop(life)
        is_from_outside = code in KILLS and cause is None and not worker.is_condemned
        for request_id in worker.running:
            self.requests[request_id].crashes_since_token += not is_from_outside
        self.die(life, "the worker was killed", code, cause)

    def obeys(self, life: int) -> None:
        """Ends what it was told to abort, and goes if it was told to."""
        worker = self.workers[life]
        self.step(life)
        if worker.must_go:
            if worker.is_ready:
                self.say(life, Bye())
            self.dies(life, 0 if worker.is_ready else -signal.SIGTERM)

    def passes(self, seconds: float) -> None:
        """Time goes on as the supervisor's loop sees it."""
        end = self.now + seconds
        while (due := self.pool.deadline()) <= end:
            self.now = max(self.now, due)
            self.ticks()
        self.now = end

    def looks(self, hung: int, *, is_beating: bool) -> None:
        """The supervisor's look at the counters: all get on but the one that hangs, or is stuck."""
        for life, worker in self.workers.items():
            worker.beats += life != hung or is_beating
            worker.steps += life != hung
        pulses = {life: Pulse(worker.beats, worker.steps, "its log") for life, worker in self.workers.items()}
        self.do(self.pool.pulse(pulses, self.now))

    def ticks(self) -> None:
        self.do(self.pool.tick(self.now))
        assert self.pool.deadline() > self.now, "the loop would spin"

    @property
    def pending(self) -> list[str]:
        """Requests and tickets without an ending."""
        waiting = [request_id for request_id, asked in self.requests.items() if not asked.endings]
        return waiting + [ticket for ticket, answers in self.tickets.items() if not answers]


class PoolMachine(RuleBasedStateMachine):
    """Rules do what users, workers and the clock can do; invariants say what must never be otherwise."""

    world: CheckedWorld

    @initialize(
        spare=st.booleans(),
        budget=st.sampled_from([1, 3, 100]),
        recycle=st.sampled_from([0, 0, 1, 3]),
        demand=st.booleans(),
    )
    def begin(self, spare: bool, budget: int, recycle: int, demand: bool) -> None:
        knobs = {"max_queue": MAX_QUEUE, "queue_timeout_s": 300, "hang_timeout_s": 10, "progress_timeout_s": 10}
        knobs["recycle_after_requests"] = recycle
        self.world = CheckedWorld(spare=spare, crash_budget=budget, load_stall_timeout_s=10, **knobs)
        self.world.on_demand = {name: order(name, max_batch=2) for name in MODELS} if demand else {}
        self.number = 0

    def named(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"

    def ticket(self) -> str:
        name = self.named("ticket")
        self.world.tickets[name] = 0
        return name

    def life(self, pick: int) -> int:
        return self.world.alive[pick % len(self.world.alive)]

    # Users

    @rule(
        name=st.sampled_from(MODELS),
        replicas=st.integers(1, 3),
        max_batch=st.sampled_from([2, 2, 2, 1]),
        ttl_s=st.sampled_from([None, None, 50.0]),
        pin=st.booleans(),
    )
    def load(self, name: str, replicas: int, max_batch: int, ttl_s: float | None, pin: bool) -> None:
        self.world.load(name, ticket=self.ticket(), replicas=replicas, max_batch=max_batch, ttl_s=ttl_s, pin=pin)

    @rule(name=st.sampled_from([*MODELS, None]), force=st.booleans(), pick=PICK)
    def unload(self, name: str | None, force: bool, pick: int) -> None:
        if pick < 4:
            self.world.unload(name, self.ticket(), force=force)

    @rule(
        name=st.sampled_from([*MODELS, "nobody"]),
        count=st.integers(1, 4),
        client=st.sampled_from(["", "ann", "bob"]),
        keep_alive_s=st.sampled_from([None, None, None, 0.0, 50.0, -1.0]),
        timeouts=st.sampled_from(
            [{}, {}, {"total_s": 20.0}, {"token_s": 7.0, "first_token_s": 11.0}, {"queue_s": 3.0}]
        ),
    )
    def ask(self, name: str, count: int, client: str, keep_alive_s: float | None, timeouts: dict[str, float]) -> None:
        for _ in range(count):
            request_id = self.named("request")
            self.world.requests[request_id] = Asked(name, client)
            self.world.ask(name, request_id, client, keep_alive_s, **timeouts)

    @precondition(lambda self: self.world.requests)
    @rule(pick=st.integers(0, 99))
    def abort(self, pick: int) -> None:
        """Also of one that has ended."""
        request_id = list(self.world.requests)[-1 - pick % len(self.world.requests)]
        self.world.requests[request_id].is_aborted = True
        self.world.abort(request_id)

    @rule(
        name=st.sampled_from(MODELS),
        change=st.sampled_from(
            [{}, {"max_batch": 1}, {"max_batch": 2}, {"pin": True}, {"ttl_s": 50.0}, {"replicas": 2}, {"path": "/x"}]
        ),
        knobs=st.sampled_from(KNOBS),
        pick=PICK,
    )
    def reload(self, name: str, change: dict[str, Any], knobs: dict[str, Any], pick: int) -> None:
        """Other settings; now and then the model's own entry is gone."""
        self.world.reload(name, change, knobs, removed=pick == 0)

    @rule(name=st.sampled_from([*MODELS, None]), timeout_s=st.sampled_from([0.0, 5.0, 100.0]), pick=PICK)
    def drain(self, name: str | None, timeout_s: float, pick: int) -> None:
        if pick < 2:
            self.world.drain(name, self.ticket(), timeout_s)
        elif pick < 5:
            self.world.resume(name)

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        if pick == 11:
            self.world.do(self.world.pool.stop(self.world.now))

    # Workers

    @precondition(lambda self: self.world.alive)
    @rule(pick=PICK, words=st.integers(1, 4))
    def progress(self, pick: int, words: int) -> None:
        life = self.life(pick)
        for _ in range(words):
            self.world.says_next(life)

    @rule()
    def everybody_gets_ready(self) -> None:
        for life in list(self.world.alive):
            for _ in range(4):
                self.world.says_next(life)

    @precondition(lambda self: any(worker.running for worker in self.world.workers.values()))
    @rule(pick=PICK, finish=st.sampled_from([None, "stop", "length"]))
    def token(self, pick: int, finish: FinishReason | None) -> None:
        busy = [life for life in self.world.alive if self.world.workers[life].running]
        self.world.step(busy[pick % len(busy)], finish)

    @precondition(lambda self: any(worker.running for worker in self.world.workers.values()))
    @rule(pick=PICK, fails=st.booleans())
    def one_request(self, pick: int, fails: bool) -> None:
        """News of a prefill, or a failure of one request."""
        running = [(life, r) for life in self.world.alive for r in self.world.workers[life].running]
        life, request_id = running[pick % len(running)]
        if fails:
            del self.world.workers[life].running[request_id]
            self.world.say(life, RequestFailed(request_id, "generation_failed", "it failed"))
        else:
            self.world.say(life, Prefill(request_id, 1, 2), Memory(1, 1))

    @precondition(lambda self: self.world.alive)
    @rule(pick=PICK, exits=st.booleans())
    def load_fails(self, pick: int, exits: bool) -> None:
        life = self.life(pick)
        worker = self.world.workers[life]
        if worker.options is not None and not worker.is_ready and worker.said >= 2:
            worker.is_failed = True
            self.world.say(life, LoadFailed("model_invalid", "its files are broken"))
            if exits:
                self.world.dies(life, 65)

    @precondition(lambda self: self.world.alive)
    @rule(pick=PICK, code=st.sampled_from(EXIT_CODES), is_oom=st.booleans())
    def die(self, pick: int, code: int, is_oom: bool) -> None:
        """Whatever its state; what it still says is dropped."""
        life = self.life(pick)
        ran = tuple(self.world.workers[life].running)
        self.world.dies(life, code, "oom" if is_oom and code == -signal.SIGKILL else None)
        ghosts: tuple[Chunk, ...] = tuple((request_id, "ghost", (9,), None, "stop", None, None) for request_id in ran)
        assert self.world.say(life, ghosts, Hello(1), Bye()) == []

    @precondition(lambda self: self.world.alive)
    @rule(pick=PICK, is_beating=st.booleans())
    def hang(self, pick: int, is_beating: bool) -> None:
        """For longer than is allowed; whoever has said hello and does not beat, or has work and makes no step."""
        life = self.life(pick)
        worker = self.world.workers[life]
        is_due = worker.said and not (is_beating and not worker.running)
        for _ in range(5):
            self.world.looks(life, is_beating=is_beating)
            self.world.passes(4.0)
        assert worker.must_go or not is_due

    @precondition(lambda self: self.world.alive)
    @rule(pick=PICK)
    def obey(self, pick: int) -> None:
        self.world.obeys(self.life(pick))

    # Time

    @rule(seconds=PAUSES)
    def time_passes(self, seconds: float) -> None:
        self.world.passes(seconds)

    # What must hold

    @invariant()
    def what_is_shown_is_what_there_is(self) -> None:
        world = self.world
        status = world.pool.status()
        shown = [worker for model in status.models for worker in model.workers]
        in_state = {worker.life for worker in shown if worker.state in HAS_PROCESS}
        assert in_state == set(world.pool._life.slots)
        spare = world.pool._life.spare
        spares = {spare.life} if spare else set()
        assert in_state | spares | set(world.pool._life._doomed) == set(world.workers), "a process nobody knows"
        for worker in shown:
            if worker.state in HAS_PROCESS:
                assert worker.in_flight == len(world.workers[worker.life].running)
            else:
                assert worker.in_flight == 0
            assert worker.state is world.states.get(worker.name, WorkerState.STOPPED)

    @invariant()
    def one_worker_of_a_model_is_replaced_at_a_time(self) -> None:
        for model in self.world.pool._models.values():
            assert sum(slot.is_recycled or slot.replaces is not None for slot in model.slots) <= 1

    @invariant()
    def the_queue_is_bounded_and_holds_who_waits(self) -> None:
        world = self.world
        running = {request_id for worker in world.workers.values() for request_id in worker.running}
        waiting = [(i, asked) for i, asked in world.requests.items() if not asked.endings and i not in running]
        replayed = Counter(asked.model for _, asked in waiting if asked.runs)
        depth = Counter(asked.model for _, asked in waiting)
        assert depth == Counter({m.name: m.queue_depth for m in world.pool.status().models if m.queue_depth})
        assert all(depth[name] <= MAX_QUEUE + replayed[name] for name in depth)
        keys = Counter((asked.model, asked.client) for _, asked in waiting if asked.client and not asked.runs)
        assert all(count <= (MAX_QUEUE + 1) // 2 for count in keys.values()), "a key has more than its share"

    @invariant()
    def nobody_waits_for_a_place_that_is_free(self) -> None:
        asked = self.world.pool._requests.asked
        for model in self.world.pool._models.values():
            is_suspect = {i: asked[i].is_suspect for slot in model.slots for i in slot.requests}
            queued = [asked[request_id].is_suspect for request_id in model.queue]
            free = [s for s in model.slots if s.is_open and len(s.requests) < s.max_batch]
            places = sum(slot.max_batch - len(slot.requests) for slot in free)
            if places > queued.count(True):
                assert False not in queued, "a request waits beside a free place"
            if any(not any(is_suspect[i] for i in slot.requests) for slot in free):
                assert True not in queued, "a suspect waits beside a worker without one"
            for slot in model.slots:
                assert sum(is_suspect[i] for i in slot.requests) <= 1, "two suspects on one worker"

    def teardown(self) -> None:
        """With workers that obey, everything ends: first by itself, then by stop()."""
        if not hasattr(self, "world"):
            return
        world = self.world
        for _ in range(60):
            if not world.pending:
                break
            self.everybody_gets_ready()
            for life in list(world.alive):
                world.step(life, "stop")
                world.obeys(life)
            world.passes(10.0)
        assert world.pending == []
        world.do(world.pool.stop(world.now))
        for _ in range(10):
            for life in list(world.alive):
                world.obeys(life)
            world.passes(10.0)
        assert world.alive == []
        assert world.pool.is_stopped
        assert world.pool.deadline() == math.inf
        assert world.pool._models == {}
        assert world.pool._requests.asked == {}


PoolMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestAnythingInAnyOrder(PoolMachine.TestCase):  # type: ignore[misc]
    """pytest's name for the machine."""
