"""The caller's current span, so that a task becomes a part of the trace that it is submitted in."""

from __future__ import annotations

import sys


def current_traceparent() -> str | None:
    """Return the `traceparent` of the current OpenTelemetry span; None if there is none.

    A process that has not imported OpenTelemetry's API has no span.
    """
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    span = api.get_current_span().get_span_context()
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 1:02x}" if span.is_valid else None
