"""The supervisor's one thread: waits for news, asks the pool, carries out its effects, and shows the new picture.

Decides nothing, and answers nobody by itself: what users ask for is posted to its inbox by supervisor.py, and what they
hear goes through deliveries.py. Must not import mlx, flask, or anything that does.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from forgellm.config import Settings
from forgellm.errors import StartupError
from forgellm.inbox import Inbox
from forgellm.messages import EngineName, Event
from forgellm.supervisor import narrator
from forgellm.supervisor.channel import self_test
from forgellm.supervisor.crew import REAP_S, Crew
from forgellm.supervisor.deliveries import Deliveries
from forgellm.supervisor.effects import Deliver, Effect, Send, Signal, Spawn
from forgellm.supervisor.memory import INTERVAL_S, TIGHT_INTERVAL_S, OomWatch, Sampler
from forgellm.supervisor.pool import Pool
from forgellm.supervisor.process import CONTEXT, Lost
from forgellm.supervisor.slots import DeathCause
from forgellm.supervisor.tally import Tally
from forgellm.supervisor.watch import Watches

log = logging.getLogger("forgellm.supervisor")

START_DEADLINE_S = 60.0
BATCH = 256
UNHANDLED = 64  # requests that are posted and not handled yet; who has more to ask waits
LOOK_S = 1.0
NOT_STARTED = 1  # the exit code of a worker that could not even be started

Call = Callable[[float], Iterable[Effect]]
Item = Call | tuple[int, Event | Lost]


class Loop:
    """Runs a pool: it alone calls it, and it alone owns the processes.

    `status`: the picture after the last change; `crew`: the processes, None before start(). Other threads may read
    both."""

    def __init__(
        self, settings: Settings, pool: Pool, deliveries: Deliveries, *, tally: Tally, watches: Watches
    ) -> None:
        self.status = pool.status()
        self.crew: Crew | None = None
        self._settings = settings
        self._pool = pool
        self._deliveries = deliveries
        self._tally = tally
        self._watches = watches
        self._inbox: Inbox[Item] = Inbox()
        self._room = threading.Semaphore(UNHANDLED)
        self._thread: threading.Thread | None = None
        self._sample_s = INTERVAL_S
        self._oom = OomWatch()
        self._is_running = threading.Event()
        self._has_ended = False
        self._startup_error: BaseException | None = None

    def start(self) -> None:
        """Test the channel, start the guardian and the spare. Raises StartupError (ChannelUnsafe …) if it cannot."""
        if self._thread is not None:
            raise StartupError("this Supervisor was started before; make a new one")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        self._is_running.wait(START_DEADLINE_S)
        if self._startup_error is not None:
            self._thread.join(START_DEADLINE_S)
            raise self._startup_error

    def stop(self, timeout_s: float) -> None:
        """Have the pool end everything, and SIGKILL whatever is left after `timeout_s`."""
        if self._thread is None or not self._thread.is_alive():
            return
        self.post(self._pool.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self.crew:
            self.crew.kill_all()
            self._thread.join(5.0)

    def post(self, item: Item) -> None:
        """Have the thread call the pool, or take in what a worker said. From any thread; once it has ended, all who
        wait are told so."""
        self._inbox.put(item)
        if self._thread is None or self._has_ended:
            self._deliveries.fail_all()

    def post_in_turn(self, call: Call) -> None:
        """post(), for what is asked without waiting for the answer: somebody who asks for thousands of things at once
        is held back, so that everybody else's call is handled after a few of them at most."""

        def counted(now: float) -> Iterable[Effect]:
            self._room.release()
            return call(now)

        while self._thread is not None and not self._has_ended and not self._room.acquire(timeout=LOOK_S):
            pass
        self.post(counted)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sampler: Sampler | None = None
        try:
            self_test_once()
            self.crew = Crew(self._settings, on_event=lambda life, event: self._inbox.put((life, event)))
            sampler = Sampler(
                self.crew.pids,
                report=lambda sizes: self.post(lambda now: self._measured(sizes, now)),
                interval_s=lambda: self._sample_s,
            )
            self._carry_out(self._pool.tick(time.monotonic()))
            self._is_running.set()
            while not self._pool.is_stopped:
                self._turn(self.crew)
        except BaseException as error:  # the thread's outermost edge: everybody who waits must hear of it
            log.exception("the supervisor's thread has failed")
            self._startup_error = error
        finally:
            self._has_ended = True
            if sampler:
                sampler.close()
            if self.crew:
                self.crew.kill_all()
                self.crew.close()
            self._deliveries.fail_all()
            self._watches.end()
            self._is_running.set()

    def _turn(self, crew: Crew) -> None:
        """Wait for news or the next deadline; ask the pool; act."""
        now = time.monotonic()
        wake_at = min(self._pool.deadline(), crew.next_check())
        try:
            item = self._inbox.take(max(wake_at - now, REAP_S))
            for _ in range(BATCH):  # bounded: a flood of news must not hold off deadlines and deaths
                self._handle(crew, item, time.monotonic())
                item = self._inbox.take()
            self._handle(crew, item, time.monotonic())
        except queue.Empty:
            pass
        now = time.monotonic()
        if now >= crew.next_check():
            for end in crew.reap(now):
                oom = self._oom.explain(end.exit_code)
                cause: DeathCause = "oom" if oom else end.cause
                self._carry_out(self._pool.exited(end.life, end.exit_code, oom or end.words, now, cause=cause))
            if pulses := crew.pulses():
                self._carry_out(self._pool.pulse(pulses, now))
        if now >= self._pool.deadline():
            self._carry_out(self._pool.tick(now))

    def _handle(self, crew: Crew, item: Item, now: float) -> None:
        if not isinstance(item, tuple):
            self._carry_out(item(now))
        elif isinstance(item[1], Lost):
            crew.lost(item[0], item[1], now)
        else:
            self._carry_out(self._pool.receive(item[0], item[1], now), is_step=isinstance(item[1], tuple))
            crew.handled(item[0])

    def _carry_out(self, effects: Iterable[Effect], *, is_step: bool = False) -> None:
        """Show the new picture first, so that whoever is told something finds it there."""
        effects = list(effects)
        if not is_step or any(not isinstance(e, Deliver) or _is_last(e) for e in effects):
            self.status = self._pool.status()
            narrator.tell(effects)
            self._watches.take(effects)
        self._tally.take(effects, time.monotonic())
        for effect in effects:
            match effect:
                case Deliver(to, news):
                    self._deliveries.deliver(to, news)
                case Send(life, command):
                    self._running_crew.send(life, command)
                case Signal(life, number):
                    self._running_crew.signal(life, number)
                case Spawn(life, engine):
                    self._spawn(life, engine)

    @property
    def _running_crew(self) -> Crew:
        if self.crew is None:
            raise StartupError("the supervisor is not running")
        return self.crew

    def _spawn(self, life: int, engine: EngineName) -> None:
        try:
            self._running_crew.spawn(life, engine)
        except OSError as error:
            words = f"no process could be started: {error}"
            self.post(lambda now: self._pool.exited(life, NOT_STARTED, words, now))

    def _measured(self, sizes: dict[int, int], now: float) -> list[Effect]:
        effects = self._pool.memory(sizes, now)
        self._sample_s = TIGHT_INTERVAL_S if self._pool.is_memory_tight else INTERVAL_S
        return effects


def _is_last(effect: Deliver) -> bool:
    return not isinstance(effect.news, tuple) or effect.news[4] is not None


_tested = threading.Lock()
_test_result_s: float | None = None


def self_test_once() -> float:
    """channel.self_test(), once per process. Raises ChannelUnsafe."""
    global _test_result_s  # noqa: PLW0603 - one fact about this interpreter
    with _tested:
        if _test_result_s is None:
            _test_result_s = self_test(CONTEXT)
        return _test_result_s
