"""What a pool of workers can be asked for, from Python: each verb, and what it waits for.

The public methods may be called from any thread; they post to the supervisor's thread (loop.py) and wait, with a
deadline, for its answer (deliveries.py). Must not decide anything, nor import mlx, flask, or anything that does.
"""

import atexit
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from forgellm import catalog
from forgellm.config import Settings
from forgellm.errors import (
    ConfigError,
    ForgeLLMError,
    InvalidRequest,
    ModelLoading,
    ModelUnloading,
    ShuttingDown,
)
from forgellm.messages import LoadPolicy, Request, Timeouts
from forgellm.supervisor.asking import GenerateOptions, embedding_request, python_request, seeded
from forgellm.supervisor.counts import Counts
from forgellm.supervisor.deliveries import Deliveries
from forgellm.supervisor.drains import GRACE_S
from forgellm.supervisor.effects import Deliver, Drained, Effect, Loaded, Orders, Unloaded
from forgellm.supervisor.embeddings import Embeddings
from forgellm.supervisor.generation import Generation
from forgellm.supervisor.loop import START_DEADLINE_S, Loop
from forgellm.supervisor.memory import automatic_budget_bytes, footprints
from forgellm.supervisor.orders import LoadOptions, demanded, load_order, reload_orders
from forgellm.supervisor.pool import Pool
from forgellm.supervisor.process import log_stem
from forgellm.supervisor.reload import ReloadPlan, effective
from forgellm.supervisor.slots import LoadOrder
from forgellm.supervisor.status import LoadPlan, PoolStatus
from forgellm.supervisor.tally import Tally
from forgellm.supervisor.tickets import Outcome
from forgellm.supervisor.watch import Watch, Watches

if TYPE_CHECKING:
    from forgellm.supervisor.spans import Exporter

_Answer = TypeVar("_Answer", bound=Outcome)


class Supervisor:
    """A pool of supervised workers. `with Supervisor() as pool: pool.load("smollm2"); …`"""

    def __init__(self, settings: Settings | None = None, *, reread: Callable[[], Settings] | None = None) -> None:
        """`reread` reads the settings again where they came from, for reload()."""
        self.settings = settings or Settings()
        self._reread = reread
        self._reloading = threading.Lock()
        self._budget_bytes = self.settings.memory_budget_bytes or automatic_budget_bytes()
        self._pool = Pool(self.settings, self._budget_bytes, log_stem(self.settings.log_path))
        self._deliveries = Deliveries()
        self._spans = _span_exporter(self.settings)
        self._tally = Tally(self._spans.record if self._spans else None)
        self._watches = Watches()
        self.downloads = catalog.Downloads(self._loaded_from)
        self._loop = Loop(self.settings, self._pool, self._deliveries, tally=self._tally, watches=self._watches)

    # Its own life ----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Test the channel, start the guardian and the spare. Raises StartupError (ChannelUnsafe …) if it cannot."""
        atexit.register(self.stop)
        self._loop.start()
        return self

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Abort what runs, unload everything, end every process; SIGKILL whatever is left after `timeout_s`."""
        atexit.unregister(self.stop)
        self.downloads.close()
        self._loop.stop(timeout_s)
        if self._spans:
            self._spans.close()
            self._spans = None

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
        with self._deliveries.ticket() as (ticket_id, ticket):
            self._loop.post(lambda now: self._pool.load(order, ticket_id, now))
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
        return self._ask(LoadPlan, lambda ticket_id, now: [Deliver(ticket_id, self._pool.plan(order, now))])

    def unload(self, model: str | None = None, *, force: bool = False, timeout_s: float | None = None) -> Unloaded:
        """Unload a model (None: the current one) and return when its processes are gone and its memory is back.

        Running requests finish first, for at most drain_timeout_s, unless `force`. Raises ModelUnloading if
        `timeout_s` passes first, while the unload goes on."""
        name = self._real_name(model)
        measured = footprints(self._loop.crew.pids()) if self._loop.crew else {}
        with self._deliveries.ticket() as (ticket_id, ticket):

            def unload(now: float) -> list[Effect]:
                measure = self._pool.memory(measured, now)
                return [*measure, *self._pool.unload(name, ticket_id, now, force=force)]

            self._loop.post(unload)
            outcome = ticket.wait(timeout_s)
        if not isinstance(outcome, Unloaded):
            raise ModelUnloading(f"{model} is not unloaded after {timeout_s:g} s; it goes on", retry_after_s=2.0)
        return outcome

    def drain(self, model: str | None = None, *, timeout_s: float | None = None) -> Drained:
        """Have a model (None: all) take no new requests until resume(); waits until those it has have finished.

        What is not finished after `timeout_s` (None: drain_timeout_s) is aborted. Raises ModelNotLoaded."""
        limit_s = self.settings.drain_timeout_s if timeout_s is None else timeout_s
        name = self._real_name(model)
        return self._ask(
            Drained,
            lambda ticket_id, now: self._pool.drain(name, ticket_id, limit_s, now),
            limit_s + GRACE_S + START_DEADLINE_S,
        )

    def resume(self, model: str | None = None) -> None:
        """Undo drain(), for a model or (None) for all."""
        name = self._real_name(model)
        self._loop.post(lambda now: self._pool.resume(name, now))

    def reload(self, settings: Settings | None = None, *, dry_run: bool = False) -> ReloadPlan:
        """Go by other settings (None: read again where they came from), and return what that does; see ReloadPlan.

        Only what changed is touched; with `dry_run` nothing is. Raises ConfigError for settings that cannot be used:
        then nothing has changed."""
        with self._reloading:
            if settings is None:
                if self._reread is None:
                    raise ConfigError("these settings came from no file, so they cannot be read again")
                settings = self._reread()
            loaded = self._ask(Orders, lambda ticket_id, now: [Deliver(ticket_id, self._pool.orders())])
            plan, orders = reload_orders(self.settings, settings, self._budget_bytes, loaded)
            if dry_run:
                return plan
            self.settings = found = effective(self.settings, settings)
            self._budget_bytes = budget_bytes = found.memory_budget_bytes or automatic_budget_bytes()
            stale = (*plan.changed, *plan.removed)
            self._loop.post(
                lambda now: self._pool.reload(found, budget_bytes, orders, now, stale=stale, removed=plan.unloaded)
            )
        for name in plan.loaded:
            self.load(name, wait=False)
        return plan

    def status(self) -> PoolStatus:
        """An immutable picture of everything, as of the last change. Never blocks."""
        return replace(self._loop.status, clock=time.monotonic())

    def counts(self, *, timeout_s: float = 5.0) -> Counts:
        """What happened since the start, in numbers. The supervisor's thread answers, so an answer shows that it lives.

        Raises ShuttingDown if it has ended or does not answer in time."""
        return self._ask(Counts, lambda ticket_id, now: [Deliver(ticket_id, self._tally.counts(now))], timeout_s)

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
        models = self._loop.status.models
        inside = (each.name for each in models if each.path and Path(each.path).is_relative_to(folder))
        return next(inside, None)

    # Requests --------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Generation:
        """Run a request, on a model that it may have loaded if nobody did (`load_policy`).

        Raises nothing: every error arrives through the Generation, the load's own too. Looks at the model's files, for
        some milliseconds, unless it is loaded or on its way, and waits while very many were asked for at once."""
        request = seeded(request)
        generation = Generation(request.request_id, request.model, self.abort)
        name = self.settings.model_name(request.model)
        if not self._deliveries.expect(request.request_id, generation):
            generation.fail(InvalidRequest(f"the request {request.request_id} runs already", field="request_id"))
            return generation
        missing = self._missing(name, request.load_policy)
        self._loop.post_in_turn(lambda now: self._submit(replace(request, model=name), missing, now))
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
        self._loop.post(lambda now: self._pool.abort(request_id, now))

    def _missing(self, name: str, policy: LoadPolicy | None) -> LoadOrder | ForgeLLMError:
        """How to load the model if the pool finds that it is not, or what to answer then."""
        if self._loop.status.model(name) is not None:
            return ModelUnloading(f"{name} has just been unloaded; ask again")
        return demanded(self.settings, self._budget_bytes, name, policy)

    def _ask(
        self, kind: type[_Answer], ask: Callable[[str, float], list[Effect]], timeout_s: float = START_DEADLINE_S
    ) -> _Answer:
        """What the supervisor's thread answers to `ask`, which it calls with a ticket's id and the time.

        Raises ShuttingDown if it has ended or does not answer in time."""
        with self._deliveries.ticket() as (ticket_id, ticket):
            self._loop.post(lambda now: ask(ticket_id, now))
            answer = ticket.wait(timeout_s)
        if not isinstance(answer, kind):
            raise ShuttingDown(f"the supervisor has not answered for {timeout_s:g} s")
        return answer

    def _submit(self, request: Request, missing: LoadOrder | ForgeLLMError, now: float) -> list[Effect]:
        self._tally.asked(request, now)
        return self._pool.submit(request, missing, now)

    def _settled(self, news: Loaded) -> None:
        """Return once all that was posted before has been carried out, and shows in status()."""
        self._ask(Loaded, lambda ticket_id, now: [Deliver(ticket_id, news)])

    def _real_name(self, model: str | None) -> str | None:
        return None if model is None else self.settings.model_name(model)


def _span_exporter(settings: Settings) -> "Exporter | None":
    if not settings.otel:
        return None
    from forgellm.supervisor.spans import Exporter  # noqa: PLC0415 - an extra that few have

    return Exporter()
