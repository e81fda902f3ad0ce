"""The secrets that each process needs. The manifests and units give it these and no others."""

from __future__ import annotations

from shared.settings import secret_variables

NEEDED = {
    "orchestrator": {"DATABASE_URL", "REDIS_URL", "MINION_API_KEY", "MINION_SECRET_KEY", "MINION_METRICS_TOKEN"},
    "worker": {"DATABASE_URL", "REDIS_URL", "MINION_SECRET_KEY", "ANTHROPIC_API_KEY"},
    "flower": {"REDIS_URL", "MINION_FLOWER_PASSWORD"},
    "migrate": {"DATABASE_URL", "MINION_SECRET_KEY"},
}
OPTIONAL = {
    "MINION_ALERT_URLS",
    "MINION_OIDC_CLIENT_SECRET",
    "MINION_PROVIDER_KEYS",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "SENTRY_DSN",
}
"""Secrets that an installation adds if it uses what they are for."""


def without_place() -> list[str]:
    """Return secrets that belong to no process here."""
    return sorted({*secret_variables()} - set().union(*NEEDED.values()) - OPTIONAL)
