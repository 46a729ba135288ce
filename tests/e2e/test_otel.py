"""A daemon with `otel = true` and the real exporter: what reaches a collector, and one that does not answer."""

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from daemons import Daemon, daemon

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

pytestmark = pytest.mark.e2e

TOML = 'otel = true\nspare = false\n[models.e]\nsource = "echo"\n'
FAILED = "generation_failed"
PROMPT = "where the treasure is"


class Collector(ThreadingHTTPServer):
    """Takes what is posted to it: (path, body)."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, bytes]] = []
        super().__init__(("127.0.0.1", 0), Post)

    def spans(self) -> Iterator[tuple[dict[str, Any], Any, dict[str, Any]]]:
        """(the resource's attributes, the span, its attributes), decoded from protobuf."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for path, body in self.posted:
            assert path == "/v1/traces"
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in group.scope_spans:
                    for span in scope.spans:
                        yield plain(group.resource.attributes), span, plain(span.attributes)


class Post(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def plain(attributes: Any) -> dict[str, Any]:
    """OTLP's list of keys and values as a dict."""

    def value(any_value: Any) -> Any:
        found = getattr(any_value, any_value.WhichOneof("value"))
        return [value(each) for each in found.values] if hasattr(found, "values") else found

    return {each.key: value(each.value) for each in attributes}


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def ask(served: Daemon) -> None:
    """One request that is answered, and one that fails."""
    assert served.http.post("/api/model/load", json={"model_name": "e", "wait": True}).status_code == 200
    body = {"model": "e", "prompt": PROMPT}
    answered = served.http.post("/api/model/generate", json=body, headers={"X-Request-Id": "job-7"})
    assert answered.json()["text"] == PROMPT
    body = {"model": "e", "prompt": f"{PROMPT}, and more"}
    assert served.http.post("/api/model/generate", json=body).json()["code"] == FAILED


def test_a_collector_gets_the_spans_of_a_daemon_and_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not sent yet when it is told to end, too."""
    with collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        with daemon(tmp_path, TOML + "options = {fail_at_token = 5}\n") as served:
            ask(served)
            assert served.stop() == 0
        spans = list(server.spans())
        posted = b"".join(body for _, body in server.posted)
    assert b"treasure" not in posted
    assert {(r["service.name"], r["deployment.environment"]) for r, _, _ in spans} == {("forgellm", "test")}
    roots = {of["forgellm.request_id"].endswith("job-7"): (span, of) for _, span, of in spans if span.name == "request"}
    done, of_done = roots[True]
    inside = {span.name: span for _, span, _ in spans if span.parent_span_id == done.span_id}
    assert set(inside) == {"queue", "prefill", "decode"}
    assert {span.trace_id for span in inside.values()} == {done.trace_id}
    assert done.start_time_unix_nano == inside["queue"].start_time_unix_nano
    assert done.end_time_unix_nano == inside["decode"].end_time_unix_nano
    assert 0 <= time.time_ns() - done.end_time_unix_nano < 60e9
    assert of_done["gen_ai.request.model"] == "e"
    assert of_done["gen_ai.response.finish_reasons"] == ["stop"]
    assert of_done["gen_ai.usage.output_tokens"] == 4
    failed, of_failed = roots[False]
    assert (failed.status.code, of_failed["error.type"]) == (2, FAILED)


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """A port that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


@pytest.mark.chaos
@pytest.mark.parametrize("port", [nobody, mute])
def test_a_collector_that_does_not_answer_holds_neither_requests_nor_the_end(
    tmp_path: Path, port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with port() as number:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{number}")
        with daemon(tmp_path, TOML) as served:
            assert served.http.post("/api/model/load", json={"model_name": "e", "wait": True}).status_code == 200
            body = {"model": "e", "prompt": PROMPT}
            assert served.http.post("/api/model/generate", json=body).json()["text"] == PROMPT
            begun = time.monotonic()
            assert served.stop(signal.SIGTERM) == 0
            assert time.monotonic() - begun < 6.0
    told = (tmp_path / "daemon.log").read_text("utf-8")
    assert "treasure" not in told
    assert "Traceback" not in told
    assert "did not take the last spans" in told
