"""Counts what happens to requests and workers: fed with each request and every effect. Pure; must not decide anything.

One chunk costs it about half a microsecond, on the supervisor's thread, so what is not needed for each token is counted
at the end of a request.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from forgellm.errors import ForgeLLMError
from forgellm.messages import Chunk, Generate, Prefill, Request
from forgellm.states import WorkerState
from forgellm.supervisor.counts import Counts, Distribution, ModelCounts
from forgellm.supervisor.effects import Announce, Deliver, Died, Effect, Evicted, Send

_S = WorkerState

TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WAIT_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LONG_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


class _Histogram:
    """A Distribution that grows."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def picture(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)


class _Model:
    """The growing counts of one model."""

    def __init__(self) -> None:
        self.queue = _Histogram(WAIT_BOUNDS_S)
        self.first_token = _Histogram(WAIT_BOUNDS_S)
        self.between_tokens = _Histogram(TOKEN_BOUNDS_S)
        self.request = _Histogram(LONG_BOUNDS_S)
        self.load = _Histogram(LONG_BOUNDS_S)
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.replays = self.quarantined = 0
        self.finished: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.moved_at = 0.0  # the last token, or piece of prefill, of any of its requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One request that has ended, with its instants (monotonic, seconds); None: it never came so far."""

    request_id: str
    model: str
    asked_at: float
    sent_at: float | None
    first_token_at: float | None
    ended_at: float
    completion_tokens: int
    finish_reason: str = ""
    error_code: str = ""


class _Asked:
    """A request that has not ended. `model` is None until a worker has it."""

    __slots__ = ("asked_at", "first_token_at", "last_token_at", "model", "name", "prefilled", "sent_at")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.asked_at = now
        self.model: _Model | None = None
        self.sent_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.prefilled = -1  # tokens of its prompt; a report that says no more than the one before is no progress


class Tally:
    """The counts of one supervisor; one thread feeds and asks it."""

    def __init__(self, on_end: Callable[[Ended], None] | None = None) -> None:
        """`on_end` is told of each request that has ended; it must not wait for anything."""
        self._on_end = on_end
        self._models: dict[str, _Model] = {}
        self._asked: dict[str, _Asked] = {}
        self._started_at: dict[str, float] = {}  # by worker, while it starts and loads

    def asked(self, request: Request, now: float) -> None:
        """A request has come; what becomes of it is in the effects."""
        self._asked[request.request_id] = _Asked(request.model, now)

    def take(self, effects: Iterable[Effect], now: float) -> None:
        """Count what the pool wants done."""
        for effect in effects:
            if isinstance(effect, Deliver):  # apart from the rest: it comes once for each token
                asked = self._asked.get(effect.to)
                if asked is not None:
                    self._delivered(effect.to, asked, effect.news, now)
                continue
            match effect:
                case Send(_, Generate(request)):
                    self._sent(request, now)
                case Announce():
                    self._moved(effect, now)
                case Died(worker, _, cause, _):
                    self._model_of(worker).deaths[cause] += 1
                case Evicted(model, cause, _):
                    self._model(model).evictions[cause] += 1
                case _:
                    pass

    def counts(self, now: float) -> Counts:
        """Everything, as of now."""
        oldest: dict[str, float] = {}
        for asked in self._asked.values():
            oldest[asked.name] = min(asked.asked_at, oldest.get(asked.name, now))
        return Counts(tuple(_picture(name, model, oldest.get(name), now) for name, model in self._models.items()))

    # Requests --------------------------------------------------------------------------------------------------------

    def _sent(self, request: Request, now: float) -> None:
        asked = self._asked.get(request.request_id)
        if asked is None:
            return
        if asked.model is None:
            asked.model, asked.sent_at = self._model(asked.name), now
            asked.model.queue.add(now - asked.asked_at)
        else:
            asked.model.replays += 1
            asked.prefilled = -1

    def _delivered(self, request_id: str, asked: _Asked, news: object, now: float) -> None:
        model = asked.model
        if isinstance(news, tuple):
            if model is not None and news[2]:
                last = asked.last_token_at
                if last is None:
                    model.first_token.add(now - asked.asked_at)
                    asked.first_token_at = now
                else:
                    model.between_tokens.add(now - last)
                asked.last_token_at = model.moved_at = now
                model.completion_tokens += len(news[2])
            if news[4] is not None:
                self._finished(request_id, asked, news, now)
        elif isinstance(news, Prefill):
            if model is not None and news.done > asked.prefilled:
                asked.prefilled, model.moved_at = news.done, now
        elif isinstance(news, ForgeLLMError):
            counts = self._end(request_id, asked)
            counts.errors[news.code] += 1
            counts.quarantined += news.code == "request_crashes_worker"
            self._tell_end(request_id, asked, now, 0, error_code=news.code)

    def _finished(self, request_id: str, asked: _Asked, chunk: Chunk, now: float) -> None:
        counts = self._end(request_id, asked)
        _, _, _, _, finish_reason, usage, _ = chunk
        counts.finished[str(finish_reason)] += 1
        counts.request.add(now - asked.asked_at)
        if usage is not None:
            counts.prompt_tokens += usage.prompt_tokens
            counts.cached_tokens += usage.cached_tokens
        tokens = usage.completion_tokens if usage else 0
        self._tell_end(request_id, asked, now, tokens, finish_reason=str(finish_reason))

    def _tell_end(self, request_id: str, asked: _Asked, now: float, tokens: int, **outcome: str) -> None:
        if self._on_end is not None:
            ended = Ended(
                request_id=request_id,
                model=asked.name,
                asked_at=asked.asked_at,
                sent_at=asked.sent_at,
                first_token_at=asked.first_token_at,
                ended_at=now,
                completion_tokens=tokens,
                **outcome,
            )
            self._on_end(ended)

    def _end(self, request_id: str, asked: _Asked) -> _Model:
        """Forget a request; where its end counts. Names that clients made up all count as one."""
        del self._asked[request_id]
        return self._model(asked.name if asked.name in self._models else "")

    # Workers ---------------------------------------------------------------------------------------------------------

    def _moved(self, move: Announce, now: float) -> None:
        model = self._model_of(move.worker)
        if move.new is _S.STARTING:
            self._started_at[move.worker] = now
        elif move.new is not _S.LOADING:
            started_at = self._started_at.pop(move.worker, None)
            if started_at is not None and move.new is _S.READY:
                model.load.add(now - started_at)

    def _model_of(self, worker: str) -> _Model:
        return self._model(worker.rpartition("#")[0])

    def _model(self, name: str) -> _Model:
        if name not in self._models:
            self._models[name] = _Model()
        return self._models[name]


def _picture(name: str, model: _Model, oldest: float | None, now: float) -> ModelCounts:
    return ModelCounts(
        model=name,
        queue=model.queue.picture(),
        first_token=model.first_token.picture(),
        between_tokens=model.between_tokens.picture(),
        request=model.request.picture(),
        load=model.load.picture(),
        prompt_tokens=model.prompt_tokens,
        cached_tokens=model.cached_tokens,
        completion_tokens=model.completion_tokens,
        replays=model.replays,
        quarantined=model.quarantined,
        finished=dict(model.finished),
        errors=dict(model.errors),
        deaths=dict(model.deaths),
        evictions=dict(model.evictions),
        waiting_s=0.0 if oldest is None else now - max(oldest, model.moved_at),
    )
