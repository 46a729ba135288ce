"""The pool under anything in any order, once more, with too little memory for what is asked of it."""

import math
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from test_pool_machine import EXAMPLES, MAX_QUEUE, PICK, CheckedWorld, PoolMachine

from forgellm.messages import EngineOptions, ModelSource
from forgellm.states import HAS_PROCESS, IS_LOADED, WorkerState
from forgellm.supervisor.slots import LoadOrder

BUDGET = 100
HOLD_OFF_S = 30.0
HOLDS_MEMORY = HAS_PROCESS | {WorkerState.BACKOFF}
SIZES = {"a": 30, "b": 50}


def sized(name: str, *, max_batch: int = 32, **policy: Any) -> LoadOrder:
    source = ModelSource(name=name, kind="echo", weights_bytes=SIZES[name])
    return LoadOrder(source=source, options=EngineOptions(max_batch=max_batch), **policy)


class TightWorld(CheckedWorld):
    make_order = staticmethod(sized)


class MemoryMachine(PoolMachine):
    """Three of `a` fit, one of `b`, or one of each; a look at the sizes finds anything, above the hard limit too."""

    @initialize(
        spare=st.booleans(),
        budget=st.sampled_from([1, 3, 100]),
        recycle=st.sampled_from([0, 0, 1, 3]),
        demand=st.sampled_from([True, True, False]),
    )
    def begin(self, spare: bool, budget: int, recycle: int, demand: bool) -> None:
        knobs = {"max_queue": MAX_QUEUE, "queue_timeout_s": 300, "hang_timeout_s": 10, "progress_timeout_s": 10}
        memory = {"memory_budget_bytes": BUDGET, "recycle_after_requests": recycle, "max_hold_off_s": HOLD_OFF_S}
        self.world = TightWorld(spare=spare, crash_budget=budget, load_stall_timeout_s=10, **knobs, **memory)
        self.world.on_demand = {name: sized(name, max_batch=2) for name in SIZES} if demand else {}
        self.number = 0
        self.allowed = BUDGET

    @rule(budget=st.sampled_from([BUDGET, 130]), hold_off_s=st.sampled_from([HOLD_OFF_S, 5.0]))
    def other_memory(self, budget: int, hold_off_s: float) -> None:
        """Another budget and bound."""
        self.world.reload("a", {}, {"memory_budget_bytes": budget, "max_hold_off_s": hold_off_s}, removed=False)

    @rule(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4))
    def measure(self, sizes: list[int]) -> None:
        found = dict(zip(self.world.alive, sizes, strict=False))
        others = dict.fromkeys(self.world.alive[len(found) :], 0)
        self.world.do(self.world.pool.memory(found | others, self.world.now))

    @rule(name=st.sampled_from(sorted(SIZES)), replicas=st.integers(1, 3), pick=PICK)
    def plan(self, name: str, replicas: int, pick: int) -> None:
        """Changes nothing, and names only models that are there and idle."""
        pool = self.world.pool
        before = pool.status()
        plan = pool.plan(sized(name, replicas=replicas, max_batch=2), self.world.now)
        assert pool.status() == before
        for victim in plan.would_evict:
            model = before.model(victim)
            assert model is not None
            assert (model.pin, model.in_flight, model.queue_depth) == (False, 0, 0)
        assert plan.fits == (not plan.reason)

    @invariant()
    def processes_fit_the_budget(self) -> None:
        """After the budget has shrunk, those that there are may stay; none comes until they fit."""
        live = [
            SIZES[model.name]
            for model in self.world.pool.status().models
            for worker in model.workers
            if worker.state in HAS_PROCESS
        ]
        budget = self.world.knobs["memory_budget_bytes"]
        self.allowed = max(budget, self.allowed)
        assert sum(live) <= self.allowed
        self.allowed = max(budget, sum(live))

    @invariant()
    def what_is_reserved_is_what_workers_have_or_were_promised(self) -> None:
        """A tenth more while they load, and what they are charged for if that is more."""
        status, spare = self.world.pool.status(), self.world.pool._life.spare
        found = spare.footprint_bytes if spare else 0
        for model in status.models:
            size = SIZES[model.name]
            for worker in model.workers:
                if worker.state in HOLDS_MEMORY | {WorkerState.WAITING}:
                    is_loaded = worker.state in IS_LOADED | {WorkerState.STOPPING}
                    found += max(size if is_loaded else size + size // 10, worker.memory.footprint_bytes)
        assert status.reserved_bytes == found

    @invariant()
    def only_who_is_wanted_or_died_waits_for_memory(self) -> None:
        """Or one replica more, as changed settings ask: it waits beside the others, and nobody is evicted for it."""
        for model in self.world.pool._models.values():
            waiting = [slot for slot in model.slots if slot.state is WorkerState.WAITING]
            is_addition = len(waiting) < len(model.slots)
            is_wanted = model.queue or model.load_tickets or any(slot.was_ready for slot in model.slots)
            assert is_wanted or is_addition or not waiting

    @invariant()
    def no_waiting_model_is_held_off_beyond_the_bound(self) -> None:
        """Who is first in the line, and can have a turn, has it once those in its way had theirs.

        Those may have no process now: the memory of one in backoff is promised to it, which the bound covers too. A
        worker beyond the ordered replicas (a successor, mostly) waits for room, and has nobody evicted."""
        pool, now = self.world.pool, self.world.now
        if pool._budget.is_anything_leaving():
            return
        waiting = [(slot.since, model) for model in pool._models.values() for slot in model.waiting()]
        for since, model in sorted(waiting, key=lambda found: found[0]):
            plan = pool._budget.plan_turn(model.order, now, with_busy=True)
            if not (model.queue or model.load_tickets) or not plan.fits:
                continue
            in_its_way = [pool._models[name] for name in plan.would_evict]
            if in_its_way:
                held = [slot for other in in_its_way for slot in other.slots if slot.state in HOLDS_MEMORY]
                assert held, "it waits for nobody"
                firsts = [math.inf if other.ready_at is None else other.ready_at for other in in_its_way]
                assert now < max(since, *firsts) + self.world.knobs["max_hold_off_s"]
                return
            settled = [slot for slot in model.slots[: model.order.replicas] if slot.state in HOLDS_MEMORY]
            assert len(settled) == model.order.replicas, "it waits beside free memory"

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "world"):
            assert self.world.pool.plan(sized("a"), self.world.now).reserved_bytes == 0


MemoryMachine.TestCase.settings = settings(
    max_examples=EXAMPLES // 2,
    stateful_step_count=25,
    report_multiple_bugs=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestTooLittleMemory(MemoryMachine.TestCase):  # type: ignore[misc]
    """pytest's name for the machine."""
