"""OpenTelemetry spans, from requests that ended in the pure pool."""

import sys

import pytest
from world import World

from forgellm.config import Settings
from forgellm.errors import ConfigError
from forgellm.messages import Request
from forgellm.supervisor import Supervisor
from forgellm.supervisor.effects import Effect
from forgellm.supervisor.spans import Exporter, recorder
from forgellm.supervisor.tally import Tally

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")


class Traced(World):
    """A world whose requests end as spans in memory."""

    def __init__(self) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        super().__init__()
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tally = Tally(recorder(provider))

    def do(self, effects):
        found: list[Effect] = super().do(effects)
        self.tally.take(found, self.now)
        return found

    def ask(self, model="m", request_id="r", **timeouts):
        self.tally.asked(Request(request_id=request_id, model=model, prompt="a secret"), self.now)
        return super().ask(model, request_id, **timeouts)

    def spans(self):
        """{name: (span, seconds)}."""
        return {s.name: (s, (s.end_time - s.start_time) / 1e9) for s in self.exporter.get_finished_spans()}


def test_a_request_is_a_span_with_its_phases_in_it():
    world = Traced()
    world.load()
    request = world.ask()
    world.now += 1
    world.ready(world.alive[-1])
    world.now += 2
    world.token(world.alive[-1], request)
    world.now += 4
    world.token(world.alive[-1], request, finish="stop")
    spans = world.spans()
    assert {name: round(seconds, 3) for name, (_, seconds) in spans.items()} == {
        "queue": 1,
        "prefill": 2,
        "decode": 4,
        "request": 7,
    }
    root = spans["request"][0]
    assert all(span.parent.span_id == root.context.span_id for name, (span, _) in spans.items() if name != "request")
    assert dict(root.attributes) == {
        "forgellm.request_id": "r",
        "gen_ai.request.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.output_tokens": 1,
    }


def test_a_request_that_is_refused_has_the_phases_it_came_to_and_its_error():
    world = Traced()
    world.ask("nowhere")
    spans = world.spans()
    assert set(spans) == {"queue", "request"}
    root = spans["request"][0]
    assert (root.attributes["error.type"], root.status.is_ok) == ("model_not_loaded", False)


def test_without_the_extra_the_setting_is_refused_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"forgellm\[otel\]"):
        Exporter()
    with pytest.raises(ConfigError, match="otel"):
        Supervisor(Settings(otel=True, cache_dir=str(tmp_path)))


def test_without_the_setting_nobody_imports_it(tmp_path):
    assert Supervisor(Settings(cache_dir=str(tmp_path)))._tally._on_end is None
