"""What `minion doctor` says about the export of traces."""

from __future__ import annotations

from orchestrator.tracing.endpoint import Endpoint, NotTaken
from shared.settings import Settings


def check_endpoint(settings: Settings) -> tuple[str, str, str]:
    """Return verdict, finding and advice: whether traces are on, and whether the endpoint answers.

    Raises:
        NotConfigured: the endpoint's settings are not valid.
    """
    if settings.traces_endpoint() is None:
        return "ok", "off (OTEL_EXPORTER_OTLP_ENDPOINT is not set)", ""
    endpoint = Endpoint(settings)
    answer = endpoint.probe()
    if isinstance(answer, NotTaken):
        return (
            "warning",
            f"{endpoint.shown}: {answer.why}",
            "spans wait in PostgreSQL until it answers the orchestrator (with its headers): see docs/tracing.md",
        )
    return "ok", f"on: {endpoint.shown} answers", ""
