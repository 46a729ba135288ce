"""The supervisor: one thread that waits for news, asks the pool, and carries out its effects. Decides nothing itself.

The public methods may be called from any thread; they post to the thread's inbox and wait, with a deadline, for the
answer. Must not import mlx, flask, or anything that does.
"""

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from forgellm import catalog
from forgellm.config import Settings
from forgellm.errors import (
    ConfigError,
    ForgeLLMError,
    ModelLoading,
    ModelUnloading,
    ShuttingDown,
    StartupError,
)
from forgellm.messages import Event, Prefill, Request, Timeouts
from forgellm.supervisor import narrator
from forgellm.supervisor.asking import GenerateOptions, embedding_request, python_request, seeded
from forgellm.supervisor.channel import self_test
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.crew import REAP_S, Crew
from forgellm.supervisor.drains import GRACE_S
from forgellm.supervisor.effects import Deliver, Drained, Effect, Loaded, Orders, Send, Signal, Spawn, Unloaded
from forgellm.supervisor.embeddings import Embeddings
from forgellm.supervisor.generation import Generation
from forgellm.supervisor.memory import (
    INTERVAL_S,
    TIGHT_INTERVAL_S,
    OomWatch,
    Sampler,
    automatic_budget_bytes,
    footprints,
)
from forgellm.supervisor.orders import LoadOptions, demanded, load_order, reload_orders
from forgellm.supervisor.pool import Pool
from forgellm.supervisor.process import CONTEXT, Lost, log_stem
from forgellm.supervisor.reload import ReloadPlan, effective
from forgellm.supervisor.slots import LoadOrder
from forgellm.supervisor.status import LoadPlan, PoolStatus
from forgellm.supervisor.tally import Ended, Tally
from forgellm.supervisor.tickets import Ticket, TicketScope
from forgellm.supervisor.watch import Watch, Watches

log = logging.getLogger("forgellm.supervisor")

START_DEADLINE_S = 60.0
BATCH = 256
NOT_STARTED = 1  # the exit code of a worker that could not even be started

Call = Callable[[float], Iterable[Effect]]
Item = Call | tuple[int, Event | Lost]


class Supervisor:
    """A pool of supervised workers. `with Supervisor() as pool: pool.load("smollm2"); …`"""

    def __init__(self, settings: Settings | None = None, *, reread: Callable[[], Settings] | None = None) -> None:
        """`reread` reads the settings again where they came from, for reload()."""
        self.settings = settings or Settings()
        self._reread = reread
        self._reloading = threading.Lock()
        self._budget_bytes = self.settings.memory_budget_bytes or automatic_budget_bytes()
        self._pool = Pool(self.settings, self._budget_bytes, log_stem(self.settings.log_path))
        self._sample_s = INTERVAL_S
        self._oom = OomWatch()
        self._status = self._pool.status()
        self._tally = Tally(_span_recorder(self.settings))
        self._watches = Watches()
        self.downloads = catalog.Downloads(self._loaded_from)
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._readers: dict[str, Callable[[], Generation | Ticket | None]] = {}
        self._crew: Crew | None = None
        self._thread: threading.Thread | None = None
        self._is_running = threading.Event()
        self._has_ended = False
        self._startup_error: BaseException | None = None

    # Its own life ----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Test the channel, start the guardian and the spare. Raises StartupError (ChannelUnsafe …) if it cannot."""
        if self._thread is not None:
            raise StartupError("this Supervisor was started before; make a new one")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()
        atexit.register(self.stop)
        self._is_running.wait(START_DEADLINE_S)
        if self._startup_error is not None:
            self._thread.join(START_DEADLINE_S)
            raise self._startup_error
        return self

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Abort what runs, unload everything, end every process; SIGKILL whatever is left after `timeout_s`."""
        atexit.unregister(self.stop)
        self.downloads.close()
        if self._thread is None or not self._thread.is_alive():
            return
        self._post(self._pool.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self._crew:
            self._crew.kill_all()
            self._thread.join(5.0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Models ----------------------------------------------------------------------------------------------------------

    def load(
        self,
        model: str | None = None,
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        **options: Unpack[LoadOptions],
    ) -> Loaded:
        """Load a model, and wait until it is ready; with `wait` false, until status() shows that it has begun.

        With only an adapter, its base model is found from the adapter's folder. Raises ModelNotFound, ModelError … at
        once, for what the files show; later the load's own error; ModelLoading if `timeout_s` passes first, while the
        load goes on."""
        order = load_order(self.settings, self._budget_bytes, model, options)
        source = order.source
        with self._ticket() as (ticket_id, ticket):
            self._post(lambda now: self._pool.load(order, ticket_id, now))
            begun = Loaded(
                model=source.name, adapter_path=source.adapter_path, loading_time_s=None, already_loaded=False
            )
            if not wait:
                self._settled(begun)
            outcome = ticket.wait(timeout_s if wait else 0.0) or (None if wait else begun)
        if not isinstance(outcome, Loaded):
            raise ModelLoading(
                f"{source.name} is not ready after {timeout_s:g} s; it goes on loading", retry_after_s=2.0
            )
        return outcome

    def plan(self, model: str | None = None, **options: Unpack[LoadOptions]) -> LoadPlan:
        """What load() with the same arguments (but `wait`) would need and evict now, or why it cannot be.

        Raises ModelNotFound, ModelError … as load() does."""
        order = load_order(self.settings, self._budget_bytes, model, options)
        with self._ticket() as (ticket_id, ticket):
            self._post(lambda now: [Deliver(ticket_id, self._pool.plan(order, now))])
            outcome = ticket.wait(START_DEADLINE_S)
        if not isinstance(outcome, LoadPlan):
            raise ShuttingDown("the supervisor does not answer")
        return outcome

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded:
        """Unload a model (None: the current one) and return when its processes are gone and its memory is back.

        Running requests finish first, for at most drain_timeout_s, unless `force`. Raises ModelUnloading if
        `timeout_s` passes first, while the unload goes on."""
        name = self._real_name(model)
        measured = footprints(self._crew.pids()) if self._crew else {}
        with self._ticket() as (ticket_id, ticket):

            def unload(now: float) -> list[Effect]:
                measure = self._pool.memory(measured, now)
                return [*measure, *self._pool.unload(name, ticket_id, now, force=force)]

            self._post(unload)
            outcome = ticket.wait(timeout_s)
        if not isinstance(outcome, Unloaded):
            raise ModelUnloading(f"{model} is not unloaded after {timeout_s:g} s; it goes on", retry_after_s=2.0)
        return outcome

    def drain(self, model: str | None = None, *, timeout_s: float | None = None) -> Drained:
        """Have a model (None: all) take no new requests until resume(); waits until those it has have finished.

        What is not finished after `timeout_s` (None: drain_timeout_s) is aborted. Raises ModelNotLoaded."""
        limit_s = self.settings.drain_timeout_s if timeout_s is None else timeout_s
        name = self._real_name(model)
        with self._ticket() as (ticket_id, ticket):
            self._post(lambda now: self._pool.drain(name, ticket_id, limit_s, now))
            outcome = ticket.wait(limit_s + GRACE_S + START_DEADLINE_S)
        if not isinstance(outcome, Drained):
            raise ShuttingDown("the supervisor does not answer")
        return outcome

    def resume(self, model: str | None = None) -> None:
        """Undo drain(), for a model or (None) for all."""
        name = self._real_name(model)
        self._post(lambda now: self._pool.resume(name, now))

    def reload(self, settings: Settings | None = None, *, dry_run: bool = False) -> ReloadPlan:
        """Go by other settings (None: read again where they came from), and return what that does; see ReloadPlan.

        Only what changed is touched; with `dry_run` nothing is. Raises ConfigError for settings that cannot be used:
        then nothing has changed."""
        if settings is None and self._reread is None:
            raise ConfigError("these settings came from no file, so they cannot be read again")
        with self._reloading, self._ticket() as (ticket_id, ticket):
            wanted = settings if settings is not None else self._reread() if self._reread else self.settings
            self._post(lambda now: [Deliver(ticket_id, self._pool.orders())])
            answer = ticket.wait(START_DEADLINE_S)
            if not isinstance(answer, Orders):
                raise ShuttingDown("the supervisor does not answer")
            plan, orders = reload_orders(self.settings, wanted, self._budget_bytes, answer.by_name)
            if dry_run:
                return plan
            self.settings = found = effective(self.settings, wanted)
            self._budget_bytes = budget_bytes = found.memory_budget_bytes or automatic_budget_bytes()
            stale = (*plan.changed, *plan.removed)
            self._post(
                lambda now: self._pool.reload(found, budget_bytes, orders, now, stale=stale, removed=plan.unloaded)
            )
        for name in plan.loaded:
            self.load(name, wait=False)
        return plan

    def status(self) -> PoolStatus:
        """An immutable picture of everything, as of the last change. Never blocks."""
        return self._status

    def counts(self, *, timeout_s: float = 5.0) -> Counts:
        """What happened since the start, in numbers. The supervisor's thread answers, so an answer shows that it lives.

        Raises ShuttingDown if it has ended or does not answer in time."""
        with self._ticket() as (ticket_id, ticket):
            self._post(lambda now: [Deliver(ticket_id, self._tally.counts(now))])
            outcome = ticket.wait(timeout_s)
        if not isinstance(outcome, Counts):
            raise ShuttingDown(f"the supervisor has not answered for {timeout_s:g} s")
        return outcome

    def is_alive(self, timeout_s: float) -> bool:
        """Whether the supervisor's thread answers in time."""
        try:
            self.counts(timeout_s=timeout_s)
        except ShuttingDown:
            return False
        return True

    def watch(self, wants: Callable[[str], bool] | None = None) -> Watch:
        """Follow what happens to models and their workers from now on: moves between states, loads, deaths, evictions.

        `wants`: of which models, by name; None: of all."""
        return self._watches.begin(wants)

    def catalog(self) -> list[catalog.CatalogEntry]:
        """What can be loaded by name."""
        return catalog.entries(self.settings)

    def _loaded_from(self, folder: Path) -> str | None:
        """The model here whose files are below `folder`, if any."""
        inside = (each.name for each in self._status.models if each.path and Path(each.path).is_relative_to(folder))
        return next(inside, None)

    # Requests --------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Generation:
        """Run a request, on a model that it may have loaded if nobody did (`load_policy`).

        Raises nothing: every error arrives through the Generation, the load's own too. Looks at the model's files, for
        some milliseconds, unless it is loaded or on its way."""
        request = seeded(request)
        generation = Generation(request.request_id, request.model, self.abort)
        name = self.settings.model_name(request.model)
        is_there = self._status.model(name) is not None
        missing = _just_gone(name) if is_there else demanded(self.settings, self._budget_bytes, name)
        self._readers[request.request_id] = weakref.ref(generation)
        self._post(lambda now: self._submit(replace(request, model=name), missing, now))
        return generation

    def generate(
        self, model: str, prompt: str | Sequence[Mapping[str, Any]], **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Ask a loaded model: a text, or chat turns ({"role", "content"}); `options` as in asking.GenerateOptions.

        Raises InvalidRequest for a parameter that does not exist or cannot be."""
        return self.submit(python_request(model, prompt, options))

    def embed(
        self,
        model: str,
        inputs: str | Sequence[str | Sequence[int]],
        *,
        truncate: bool = False,
        timeouts: Timeouts | None = None,
    ) -> Embeddings:
        """The vectors of texts (or of one), or of token ids, by a loaded embedding model; waits for them.

        An input that is too long is cut with `truncate`, else ContextLengthExceeded. Raises Unsupported if the model
        is not one for embeddings, and every error that ends a request."""
        request = embedding_request(model, inputs, truncate=truncate, timeouts=timeouts)
        with self.submit(request) as generation:
            return Embeddings.of(generation)

    def abort(self, request_id: str) -> None:
        """End a request early; unknown or ended ones are ignored."""
        self._post(lambda now: self._pool.abort(request_id, now))

    def _submit(self, request: Request, missing: LoadOrder | ForgeLLMError, now: float) -> list[Effect]:
        self._tally.asked(request, now)
        return self._pool.submit(request, missing, now)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        sampler: Sampler | None = None
        try:
            self_test_once()
            self._crew = Crew(self.settings, on_event=lambda life, event: self._inbox.put((life, event)))
            sampler = Sampler(
                self._crew.pids,
                report=lambda sizes: self._post(lambda now: self._measured(sizes, now)),
                interval_s=lambda: self._sample_s,
            )
            self._carry_out(self._pool.tick(time.monotonic()))
            self._is_running.set()
            while not self._pool.is_stopped:
                self._turn(self._crew)
        except BaseException as error:  # the thread's outermost edge: everybody who waits must hear of it
            log.exception("the supervisor's thread has failed")
            self._startup_error = error
        finally:
            self._has_ended = True
            if sampler:
                sampler.close()
            if self._crew:
                self._crew.kill_all()
                self._crew.close()
            self._fail_readers()
            self._watches.end()
            self._is_running.set()

    def _turn(self, crew: Crew) -> None:
        """Wait for news or the next deadline; ask the pool; act."""
        now = time.monotonic()
        wake_at = min(self._pool.deadline(), crew.next_check())
        try:
            item = self._inbox.get(timeout=max(wake_at - now, REAP_S))
            for _ in range(BATCH):  # bounded: a flood of news must not hold off deadlines and deaths
                self._handle(crew, item, time.monotonic())
                item = self._inbox.get_nowait()
            self._handle(crew, item, time.monotonic())
        except queue.Empty:
            pass
        now = time.monotonic()
        if now >= crew.next_check():
            for end in crew.reap(now):
                words = self._oom.explain(end.exit_code) or end.words
                self._carry_out(self._pool.exited(end.life, end.exit_code, words, now, cause=end.cause))
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

    def _carry_out(self, effects: Iterable[Effect], *, is_step: bool = False) -> None:
        """Show the new picture first, so that whoever is told something finds it there."""
        effects = list(effects)
        if not is_step or any(not isinstance(e, Deliver) or _is_last(e) for e in effects):
            self._status = self._pool.status()
            narrator.tell(effects)
            self._watches.take(effects)
        self._tally.take(effects, time.monotonic())
        for effect in effects:
            match effect:
                case Deliver(to, news):
                    self._deliver(to, news)
                case Send(life, command):
                    self._the_crew.send(life, command)
                case Signal(life, number):
                    self._the_crew.signal(life, number)
                case Spawn(life, engine):
                    self._spawn(life, engine)

    @property
    def _the_crew(self) -> Crew:
        if self._crew is None:
            raise StartupError("the supervisor is not running")
        return self._crew

    def _spawn(self, life: int, engine: Any) -> None:
        try:
            self._the_crew.spawn(life, engine)
        except OSError as error:
            words = f"no process could be started: {error}"
            self._post(lambda now: self._pool.exited(life, NOT_STARTED, words, now))

    def _measured(self, sizes: dict[int, int], now: float) -> list[Effect]:
        effects = self._pool.memory(sizes, now)
        self._sample_s = TIGHT_INTERVAL_S if self._pool.is_memory_tight else INTERVAL_S
        return effects

    # Answers ---------------------------------------------------------------------------------------------------------

    def _deliver(self, to: str, news: Any) -> None:
        reader = self._readers.get(to, lambda: None)()
        is_end = not isinstance(news, tuple | Prefill) or (isinstance(news, tuple) and news[4] is not None)
        if is_end:
            self._readers.pop(to, None)
        if isinstance(reader, Ticket):
            reader.put(news)
        elif isinstance(reader, Generation):
            if isinstance(news, tuple):
                reader.put(news)
            elif isinstance(news, Prefill):
                reader.prefill = (news.done, news.total)
            else:
                reader.fail(news)

    def _settled(self, news: Loaded) -> None:
        """Return once all that was posted before has been carried out, and shows in status()."""
        with self._ticket() as (ticket_id, ticket):
            self._post(lambda now: [Deliver(ticket_id, news)])
            ticket.wait(START_DEADLINE_S)

    def _real_name(self, model: str | None) -> str | None:
        return None if model is None else self.settings.model_name(model)

    def _ticket(self) -> TicketScope:
        return TicketScope(self._readers)

    def _post(self, item: Item) -> None:
        self._inbox.put(item)
        if self._thread is None or self._has_ended:
            self._fail_readers()

    def _fail_readers(self) -> None:
        """Nobody will answer any more: say so to all who wait."""
        for to in list(self._readers):
            self._deliver(to, ShuttingDown("the supervisor is not running"))


def _is_last(effect: Deliver) -> bool:
    return not isinstance(effect.news, tuple) or effect.news[4] is not None


def _just_gone(name: str) -> ModelUnloading:
    """The answer if the model that was there a moment ago is not when the request reaches the pool."""
    return ModelUnloading(f"{name} has just been unloaded; ask again", retry_after_s=1.0)


def _span_recorder(settings: Settings) -> Callable[[Ended], None] | None:
    if not settings.otel:
        return None
    from forgellm.supervisor.spans import exporting_recorder  # noqa: PLC0415 - an extra that few have

    return exporting_recorder()


_tested = threading.Lock()
_test_result_s: float | None = None


def self_test_once() -> float:
    """channel.self_test(), once per process. Raises ChannelUnsafe."""
    global _test_result_s  # noqa: PLW0603 - one fact about this interpreter
    with _tested:
        if _test_result_s is None:
            _test_result_s = self_test(CONTEXT)
        return _test_result_s
