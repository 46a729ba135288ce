"""`/metrics` in the Prometheus formats: the pool's picture and its counts, read when somebody scrapes.

Counts nothing itself, and must not put a client's words into a label.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from forgellm.api.context import context
from forgellm.api.gate import Gate
from forgellm.states import WorkerState
from forgellm.supervisor.counts import Counts, Distribution, ModelCounts
from forgellm.supervisor.status import ModelStatus, PoolStatus, WorkerStatus

blueprint = Blueprint("metrics", __name__)

VERSION = importlib.metadata.version("forgellm")

MODEL_GAUGES: tuple[tuple[str, str, Callable[[ModelStatus], float]], ...] = (
    ("forgellm_queue_requests", "Requests that wait for a place in a worker.", lambda m: m.queue_depth),
    ("forgellm_running_requests", "Requests that workers have.", lambda m: m.in_flight),
)

WORKER_GAUGES: tuple[tuple[str, str, Callable[[WorkerStatus], float]], ...] = (
    ("forgellm_worker_footprint_bytes", "What the system charges a worker for.", lambda w: w.memory.footprint_bytes),
    ("forgellm_worker_mlx_active_bytes", "What MLX holds in a worker.", lambda w: w.memory.mlx_active_bytes),
    ("forgellm_worker_mlx_cache_bytes", "What MLX keeps for re-use in a worker.", lambda w: w.memory.mlx_cache_bytes),
    ("forgellm_worker_load_progress_ratio", "How far a worker's load is.", lambda w: w.progress),
)

COUNTERS: tuple[tuple[str, str, Callable[[ModelCounts], float]], ...] = (
    ("forgellm_prompt_tokens", "Prompt tokens of requests that have ended.", lambda m: m.prompt_tokens),
    ("forgellm_cached_prompt_tokens", "Prompt tokens found in the prefix cache.", lambda m: m.cached_tokens),
    ("forgellm_completion_tokens", "Tokens delivered.", lambda m: m.completion_tokens),
    ("forgellm_replays", "Requests that went on at another worker or life.", lambda m: m.replays),
    ("forgellm_quarantined_requests", "Requests ended for killing their workers.", lambda m: m.quarantined),
)

LABELLED_COUNTERS: tuple[tuple[str, str, str, Callable[[ModelCounts], Mapping[str, int]]], ...] = (
    ("forgellm_requests", "Requests that ended with an answer.", "finish_reason", lambda m: m.finished),
    ("forgellm_request_errors", "Requests that ended with an error.", "code", lambda m: m.errors),
    (
        "forgellm_worker_deaths",
        "Unasked ends of workers; a restart or `failed` follows.",
        "reason",
        lambda m: m.deaths,
    ),
    ("forgellm_evictions", "Models unloaded without being asked to be.", "reason", lambda m: m.evictions),
)

HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelCounts], Distribution]], ...] = (
    ("forgellm_queue_seconds", "From a request's arrival to a place in a worker.", lambda m: m.queue),
    ("forgellm_time_to_first_token_seconds", "From a request's arrival to its first token.", lambda m: m.first_token),
    ("forgellm_time_between_tokens_seconds", "From token to token, replays included.", lambda m: m.between_tokens),
    ("forgellm_request_seconds", "From a request's arrival to the end of its answer.", lambda m: m.request),
    ("forgellm_worker_load_seconds", "From the order to start a worker to it being ready.", lambda m: m.load),
)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Everything that is counted and measured, for Prometheus."""
    ctx = context()
    registry = CollectorRegistry()
    registry.register(PoolCollector(ctx.pool.status(), ctx.pool.counts(), ctx.gate))
    ProcessCollector(registry=registry)
    encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encoder(registry), content_type=content_type)


class PoolCollector(Collector):
    """One scrape: the numbers are those of the moment it was made."""

    def __init__(self, status: PoolStatus, counts: Counts, gate: Gate) -> None:
        self._status = status
        self._counts = counts
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """Every family, models and workers as labels. A model's counts outlive its unloading; its gauges do not."""
        yield InfoMetricFamily("forgellm_build", "The program.", value={"version": VERSION})
        status, counts = self._status, self._counts.models
        http = GaugeMetricFamily("forgellm_http_streams", "Requests that hold a place among max_streams.")
        http.add_metric([], self._gate.inside)
        yield http
        memory = GaugeMetricFamily("forgellm_memory_reserved_bytes", "What is spoken for, of the budget.")
        memory.add_metric([], status.reserved_bytes)
        yield memory
        budget = GaugeMetricFamily("forgellm_memory_budget_bytes", "What all workers may hold; +Inf: no limit.")
        budget.add_metric([], float("inf") if status.budget_bytes is None else status.budget_bytes)
        yield budget
        yield _states(status.models)
        for name, text, of_model in MODEL_GAUGES:
            family = GaugeMetricFamily(name, text, labels=["model"])
            for model in status.models:
                family.add_metric([model.name], of_model(model))
            yield family
        for name, text, of_worker in WORKER_GAUGES:
            family = GaugeMetricFamily(name, text, labels=["model", "worker"])
            for model in status.models:
                for worker in model.workers:
                    family.add_metric([model.name, worker.name], of_worker(worker))
            yield family
        yield from _counters(counts)
        for name, text, distribution in HISTOGRAMS:
            yield _histogram(name, text, [(model.model, distribution(model)) for model in counts])


def _states(models: Iterable[ModelStatus]) -> Metric:
    """Every state has its sample, those that no worker is in too: an alert needs a zero to compare with."""
    family = GaugeMetricFamily("forgellm_workers", "Workers by state.", labels=["model", "state"])
    for model in models:
        states = [worker.state for worker in model.workers]
        for state in WorkerState:
            family.add_metric([model.name, state], states.count(state))
    return family


def _counters(counts: Iterable[ModelCounts]) -> Iterator[Metric]:
    for name, text, value in COUNTERS:
        family = CounterMetricFamily(name, text, labels=["model"])
        for model in counts:
            family.add_metric([model.model], value(model))
        yield family
    for name, text, label, values in LABELLED_COUNTERS:
        family = CounterMetricFamily(name, text, labels=["model", label])
        for model in counts:
            for word, count in values(model).items():
                family.add_metric([model.model, word], count)
        yield family


def _histogram(name: str, text: str, found: Iterable[tuple[str, Distribution]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["model"])
    for model, distribution in found:
        bounds = [*map(str, distribution.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(distribution.counts), strict=True))
        family.add_metric([model], buckets, distribution.total)
    return family
