"""Structured logs and error reports.

Every line of a log is an event with fields; while a minion works on a task, each line carries `task`, `claim`,
`agent` and `capability`. Inputs, outputs and prompts are never logged, nor sent to Sentry.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from typing import Any

import structlog

from shared.contracts.visible_text import visible
from shared.errors import NotConfigured
from shared.settings import Settings

# Celery repeats what the minion logs with more fields.
QUIET = (
    "celery.app.trace",
    "celery.worker.strategy",
    "httpx2",
    "httpcore2",
    "alembic",
    "amqp",
    "kombu",
    "celery.redirected",
    "uvicorn.access",
)


LEFT_OUT = "(left out: a message may quote data)"
# The fields of an error report that are sent. `transaction` would be the path of a request, with any data in it.
KEPT = (
    "event_id timestamp level platform environment release sdk dist logger exception threads tags type modules"
).split()


def configure(settings: Settings, *, component: str) -> None:
    """Send structlog's and the standard library's records to standard error, and errors to Sentry if it is on.

    Args:
        component: the kind of process: `orchestrator`, `worker`, `flower` or `mcp`.
    """
    _configure_logs(settings, component)
    _configure_sentry(settings, component)


def report(error: Exception) -> None:
    """Send an error to Sentry, if it is on. The SDK is not loaded otherwise."""
    if sentry := sys.modules.get("sentry_sdk"):
        sentry.capture_exception(error)


def _configure_logs(settings: Settings, component: str) -> None:
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    common: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderers: list[Any] = (
        [_visible, structlog.dev.ConsoleRenderer()] if console else [structlog.processors.JSONRenderer(default=str)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *common],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)


def _visible(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape characters that a terminal would obey: errors quote models, functions and callers."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in event.items()}


def _configure_sentry(settings: Settings, component: str) -> None:
    if not settings.sentry_dsn:
        return
    import sentry_sdk
    from sentry_sdk.utils import BadDsn

    from shared import __version__

    try:
        sentry_sdk.init(
            dsn=settings.sentry_dsn.get_secret_value(),
            environment=settings.environment,
            release=f"minions@{__version__}",
            send_default_pii=False,
            # Local variables contain prompts, inputs and keys.
            include_local_variables=False,
            include_source_context=False,
            max_request_body_size="never",
            # Without this, tool servers, webhook receivers and the model's API would receive `baggage` with our
            # release, environment and public key.
            trace_propagation_targets=[],
            before_send=_scrub,
            before_send_transaction=lambda event, hint: None,
            before_breadcrumb=lambda crumb, hint: None,
        )
    except BadDsn:
        raise NotConfigured("SENTRY_DSN is not an address like https://key@host/project.") from None
    sentry_sdk.set_tag("component", component)


def _scrub(event: Any, hint: dict[str, Any]) -> Any:
    """Keep what an operator needs: the kind of error, its place in the code, and our own tags."""
    kept = {name: event[name] for name in KEPT if event.get(name) is not None}
    contexts = event.get("contexts") or {}
    trace = contexts.get("trace") or {}
    kept["contexts"] = {
        "runtime": contexts.get("runtime"),
        "trace": {name: trace.get(name) for name in ("trace_id", "span_id", "parent_span_id")},
    }
    for exception in (kept.get("exception") or {}).get("values") or []:
        exception["value"] = LEFT_OUT
        exception["mechanism"] = {
            name: value for name, value in (exception.get("mechanism") or {}).items() if name in ("type", "handled")
        }
    if "logentry" in event or "message" in event:
        kept["logentry"] = {"message": _template(hint.get("log_record"))}
    return kept


def _template(record: logging.LogRecord | None) -> str:
    """Return a log line without its values: our events' names, and foreign text if its values are separate."""
    if record is None:
        return LEFT_OUT
    if isinstance(record.msg, dict):
        name = str(record.msg.get("event"))
        return name if name.isidentifier() else LEFT_OUT
    return str(record.msg)[:200] if record.args else f"{LEFT_OUT} {record.name}"
