"""OpenTelemetry spans of requests that have ended, for whoever asked for them with the setting `otel`.

Imported by nobody else: without the setting, the program does not know of OpenTelemetry. Must not hold up the
supervisor's thread: spans are queued here, and sent by the exporter's own.
"""

import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from forgellm.errors import ConfigError
from forgellm.supervisor.tally import Ended

LAST_SPANS_S = 3.0  # at the end, for those that have not been sent yet

log = logging.getLogger(__name__)


class Exporter:
    """Sends a span for each request by OTLP over HTTP, to where the OTEL_EXPORTER_OTLP_* variables say.

    record() from the supervisor's thread; close() once, at the end. Raises ConfigError if the extra is missing."""

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - the same extra
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - the same extra
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - the same extra
        except ImportError as error:
            needed = f"the setting `otel` needs more packages ({error}); pip install 'forgellm[otel]'"
            raise ConfigError(needed, field="otel") from error
        own = Resource.create({"service.name": "forgellm", "service.version": _release()})
        self._sender = OTLPSpanExporter()
        # Not at exit, where the SDK would wait as long as it likes: close() ends it.
        self._provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._sender))
        self.record = recorder(self._provider)

    def close(self, timeout_s: float = LAST_SPANS_S) -> None:
        """Send what is waiting, within `timeout_s`; a collector that does not take it holds nobody up any longer."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(timeout_s)
        if sending.is_alive():
            log.warning("the collector of OpenTelemetry did not take the last spans within %g s", timeout_s)
            self._sender.shutdown()


def recorder(provider: Any) -> Callable[[Ended], None]:
    """Records each request as a span `request`, with `queue`, `prefill` and `decode` in it as far as it came.

    `provider`: an OpenTelemetry TracerProvider. No span holds a prompt or an answer."""
    from opentelemetry.trace import Status, StatusCode, set_span_in_context  # noqa: PLC0415 - an extra

    tracer = provider.get_tracer("forgellm", _release())

    def record(ended: Ended) -> None:
        offset_ns = time.time_ns() - time.monotonic_ns()
        attributes = {"forgellm.request_id": ended.request_id, "gen_ai.request.model": ended.model}
        root = tracer.start_span("request", start_time=_ns(ended.asked_at, offset_ns), attributes=attributes)
        inside = set_span_in_context(root)
        marks = [ended.asked_at, ended.sent_at, ended.first_token_at, ended.ended_at]
        for name, begin, end in zip(("queue", "prefill", "decode"), marks, marks[1:], strict=False):
            if begin is not None:
                span = tracer.start_span(name, context=inside, start_time=_ns(begin, offset_ns))
                span.end(_ns(ended.ended_at if end is None else end, offset_ns))
        if ended.error_code:
            root.set_attribute("error.type", ended.error_code)
            root.set_status(Status(StatusCode.ERROR))
        else:
            root.set_attribute("gen_ai.response.finish_reasons", [ended.finish_reason])
            root.set_attribute("gen_ai.usage.output_tokens", ended.completion_tokens)
        root.end(_ns(ended.ended_at, offset_ns))

    return record


def _ns(instant: float, offset_ns: int) -> int:
    """A monotonic instant as nanoseconds of wall time."""
    return int(instant * 1e9) + offset_ns


def _release() -> str:
    return importlib.metadata.version("forgellm")
