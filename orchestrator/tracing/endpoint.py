"""The endpoint that receives spans: OTLP over HTTP, in protobuf.

What it accepted is done. What it refuses for what it is (400, 413, 422) is divided, until only the spans remain that it
does not take; these are given up, as OTLP demands. Everything else, such as no answer, a redirect, a page in place of
an answer, or a wrong key, is a fault of the endpoint or its configuration: the spans are sent again later.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from urllib.parse import unquote

import httpx2
import structlog
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

import minions
from orchestrator.tracing.spans import LONGEST_VALUE, bounded
from shared.errors import InvalidInput, MinionError, NotConfigured
from shared.outbound import AddressGuard, GuardedTransport, checked_url
from shared.retry_after import retry_after
from shared.secret_store import HEADER_TEXT
from shared.settings import Settings

log = structlog.get_logger(__name__)

MOST_ANSWER = 64 << 10
"""Bytes of an answer that are read."""
LONGEST_PAUSE = 300.0
"""Seconds for which the endpoint may ask."""
REFUSED_SPANS = frozenset({400, 413, 422})
LATER = frozenset({429, 502, 503, 504})
PROTOBUF = "application/x-protobuf"
OURS = {"content-type": PROTOBUF, "content-encoding": "gzip"}
OF_CONNECTION = frozenset({"connection", "content-length", "transfer-encoding"})
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# The operator names the endpoint, which usually is on this machine or in this network.
ANYWHERE = AddressGuard((ip_network("0.0.0.0/0"), ip_network("::/0")))


@dataclass(frozen=True, slots=True)
class Taken:
    """The endpoint has answered for all spans.

    Attributes:
        refused: the spans that it does not take.
        why: its reason, or a warning.
    """

    refused: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The spans must be sent again.

    Attributes:
        why: what is wrong, for an operator.
        after: seconds for which the endpoint asks.
    """

    why: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class _TooBad:
    """The endpoint refuses these spans, as they are."""

    why: str


class Endpoint:
    """Posts spans to the configured address.

    Attributes:
        url: the address.
        shown: the address for logs.
        seconds: limit for an exchange.
    """

    def __init__(self, settings: Settings) -> None:
        """Send nothing yet.

        Raises:
            NotConfigured: the address, the headers or the resource's attributes are not valid.
        """
        url = _url(settings)
        self.url = str(url)
        # A query may have a key.
        self.shown = str(url.copy_with(query=None))
        self.seconds = (settings.otel_exporter_otlp_traces_timeout or settings.otel_exporter_otlp_timeout) / 1000
        self._headers = {**_headers(settings), **OURS}
        self._resource = Resource(attributes=[_text(*pair) for pair in _resource(settings).items()])

    def send(self, spans: Sequence[Span]) -> Taken | NotTaken:
        """Send spans; a slow exchange ends after the configured time-out."""
        answer = self._post(spans)
        if not isinstance(answer, _TooBad):
            return answer
        if isinstance(probe := self.probe(), NotTaken):
            # It does not take anything.
            return NotTaken(answer.why if probe.why == answer.why else f"{answer.why}; without spans: {probe.why}")
        return self._divide(spans, answer.why)

    def probe(self) -> Taken | NotTaken:
        """Send a request without spans, which every endpoint accepts."""
        answer = self._post([])
        return NotTaken(answer.why) if isinstance(answer, _TooBad) else answer

    def _divide(self, spans: Sequence[Span], why: str) -> Taken | NotTaken:
        """Send the halves of spans that were refused together."""
        if len(spans) == 1:
            return Taken(1, why)
        refused = 0
        for half in (spans[: len(spans) // 2], spans[len(spans) // 2 :]):
            answer = self._post(half)
            part = self._divide(half, answer.why) if isinstance(answer, _TooBad) else answer
            if isinstance(part, NotTaken):
                return part
            refused += part.refused
        return Taken(refused, why)

    def _post(self, spans: Sequence[Span]) -> Taken | NotTaken | _TooBad:
        body = gzip.compress(self._request(spans).SerializeToString(), compresslevel=1)
        try:
            with (
                httpx2.Client(
                    transport=GuardedTransport(ANYWHERE, seconds=self.seconds), timeout=self.seconds, trust_env=False
                ) as client,
                client.stream("POST", self.url, content=body, headers=self._headers) as response,
            ):
                return _judge(response, _read(response), len(spans))
        except (httpx2.RequestError, MinionError) as error:
            return NotTaken(f"no answer: {type(error).__name__}: {error}"[:300])

    def _request(self, spans: Sequence[Span]) -> ExportTraceServiceRequest:
        if not spans:
            return ExportTraceServiceRequest()
        scope = InstrumentationScope(name="minions", version=minions.__version__)
        scoped = ScopeSpans(scope=scope, spans=spans)
        return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[scoped])])


def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MOST_ANSWER:
            break
    return bytes(body)


def _judge(response: httpx2.Response, body: bytes, sent: int) -> Taken | NotTaken | _TooBad:
    status = response.status_code
    if 200 <= status < 300:
        return _accepted(response.headers.get("content-type", ""), body, sent)
    said = f"it answers {status}"
    if response.is_redirect:
        return NotTaken(f"{said}, a redirect, which is not followed: correct the address")
    if status in REFUSED_SPANS:
        return _TooBad(said)
    pause = retry_after(response.headers) if status in LATER else None
    return NotTaken(said, None if pause is None else min(pause, LONGEST_PAUSE))


def _accepted(content_type: str, body: bytes, sent: int) -> Taken | NotTaken:
    answer = ExportTraceServiceResponse()
    try:
        if content_type.startswith("application/json"):
            Parse(body or b"{}", answer, ignore_unknown_fields=True)
        elif body and not content_type.startswith(PROTOBUF):
            raise DecodeError
        else:
            answer.ParseFromString(body)
    except (ParseError, DecodeError, UnicodeDecodeError, RecursionError):
        return NotTaken("its answer is none of OTLP: correct the address")
    partial = answer.partial_success
    return Taken(max(0, min(partial.rejected_spans, sent)), bounded(partial.error_message, 300))


def _url(settings: Settings) -> httpx2.URL:
    given = settings.traces_endpoint()
    if given is None:
        raise NotConfigured("Traces have no endpoint: set OTEL_EXPORTER_OTLP_ENDPOINT.")
    try:
        return checked_url(given)
    except InvalidInput as error:
        traces = settings.otel_exporter_otlp_traces_endpoint
        name = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if traces else "OTEL_EXPORTER_OTLP_ENDPOINT"
        raise NotConfigured(f"{name} is not valid: {error.message}") from None


def _headers(settings: Settings) -> dict[str, str]:
    secret = settings.otel_exporter_otlp_traces_headers or settings.otel_exporter_otlp_headers
    variable = f"OTEL_EXPORTER_OTLP_{'TRACES_' if settings.otel_exporter_otlp_traces_headers else ''}HEADERS"
    given = _pairs(secret.get_secret_value() if secret else "", variable)
    headers = {name.lower(): value for name, value in given.items()}
    for name, value in headers.items():
        if name in OF_CONNECTION:
            raise NotConfigured(f"{variable} is not valid: it must not have the header {name}.")
        if not TOKEN.fullmatch(name) or not HEADER_TEXT.fullmatch(value):
            # The text may be a secret in the wrong place.
            raise NotConfigured(f"{variable} is not valid: a name must be a header's, and a value printable ASCII.")
    return headers


def _resource(settings: Settings) -> dict[str, str]:
    given = _pairs(settings.otel_resource_attributes or "", "OTEL_RESOURCE_ATTRIBUTES")
    ours = {
        "service.name": "minions",
        "service.version": minions.__version__,
        "deployment.environment.name": settings.environment,
    }
    named = {"service.name": settings.otel_service_name} if settings.otel_service_name else {}
    return {**ours, **given, **named}


def _pairs(text: str, variable: str) -> dict[str, str]:
    """Return the pairs of a list such as `name=value,other=value`, whose values are percent-encoded."""
    pairs: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise NotConfigured(f"{variable} is not valid: it must be like name=value,other=value.")
        pairs[unquote(name.strip())] = unquote(value.strip())
    return pairs


def _text(name: str, value: str) -> KeyValue:
    return KeyValue(key=bounded(name, LONGEST_VALUE), value=AnyValue(string_value=bounded(value, LONGEST_VALUE)))
