"""A collector of traces: a real HTTP server in a thread that decodes OTLP and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.http_server import answering
from tests.support.processes import wait_until

PROTOBUF = {"Content-Type": "application/x-protobuf"}
Answer = tuple[int, dict[str, str], bytes]
ACCEPTED: Answer = (200, PROTOBUF, b"")


def refusing(spans: int, why: str = "") -> Answer:
    """The answer of an endpoint that does not take some of the spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = spans
    answer.partial_success.error_message = why
    return 200, PROTOBUF, answer.SerializeToString()


@dataclass
class Collector:
    """The server. `answer` decides about each request; the spans of those that it answers with 200 are kept.

    Attributes:
        requests: the number of requests, those without spans too.
        kept: the encoded spans by their ids, each export separately.
    """

    answer: Callable[[list[Span]], Answer] = lambda spans: ACCEPTED
    port: int = 0
    requests: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    kept: dict[tuple[bytes, bytes], list[bytes]] = field(default_factory=lambda: defaultdict(list))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Span]:
        """Return each span once, the earliest first.

        Raises:
            AssertionError: the exports of a span differ.
        """
        for exports in self.kept.values():
            assert len(set(exports)) == 1, [Span.FromString(each) for each in exports]
        spans = [Span.FromString(exports[0]) for exports in list(self.kept.values())]
        return sorted(spans, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def exports(self) -> int:
        """Return how often spans were exported, each repetition too."""
        return sum(len(exports) for exports in self.kept.values())

    def wait_for(self, number: int, timeout: float = 30.0) -> list[Span]:
        """Return all spans, as soon as there are that many."""
        wait_until(lambda: len(self.kept) >= number, f"{number} spans, got {len(self.kept)}", timeout)
        return self.spans()

    def take(self, body: bytes) -> Answer:
        """Answer a request, and keep its spans if they are accepted."""
        request = ExportTraceServiceRequest.FromString(body)
        spans = [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
        for resource in request.resource_spans:
            self.resource = {pair.key: plain(pair.value) for pair in resource.resource.attributes}
        self.requests += 1
        answer = self.answer(spans)
        if answer[0] == 200:
            for span in spans:
                self.kept[span.trace_id, span.span_id].append(span.SerializeToString(deterministic=True))
        return answer


def plain(value: AnyValue) -> Any:
    """Return the value of an attribute."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes."""
    return {pair.key: plain(pair.value) for pair in span.attributes}


def tree(spans: list[Span]) -> str:
    """Return spans as an indented text, children below their parents, the earliest first."""
    ids = {span.span_id for span in spans}
    children: dict[bytes, list[Span]] = defaultdict(list)
    for span in spans:
        children[span.parent_span_id if span.parent_span_id in ids else b""].append(span)

    def lines(parent: bytes, depth: int) -> Iterator[str]:
        for span in children[parent]:
            failed = " (error)" if span.status.code == span.status.STATUS_CODE_ERROR else ""
            yield f"{'  ' * depth}{span.name}{failed}"
            yield from lines(span.span_id, depth + 1)

    return "\n".join(lines(b"", 0))


@contextmanager
def collecting(answer: Callable[[list[Span]], Answer] | None = None, port: int = 0) -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector(port=port)
    if answer is not None:
        collector.answer = answer
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with lock:
                collector.headers.append(dict(self.headers))
                status, headers, text = collector.take(body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the sender gave up
                super().handle()

    with answering(Handler, collector.port) as collector.port:
        yield collector


@contextmanager
def hanging() -> Iterator[str]:
    """Run an endpoint that accepts requests and never answers; gives its address."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            released.wait(60)

        def log_message(self, *args: Any) -> None:
            pass

    with answering(Handler) as port:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            released.set()
