"""Metrics for Prometheus: every orchestrator serves what the leader counted."""

from __future__ import annotations

import threading
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.api.parameters import Statements
from orchestrator.observe import metrics

VALID_SECONDS = 1.0
OPENMETRICS = "application/openmetrics-text"
PAGE = {"type": "string", "examples": ["# TYPE minions_redis_up gauge\nminions_redis_up 1.0\n"]}

router = APIRouter(tags=["metrics"])


class MetricsPages:
    """The page in each format, for a second: several scrapers cost as much as one.

    So does an error. While the database is away, requests do not wait for it one after another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[str, tuple[float, bytes]] = {}
        self._failed: tuple[float, SQLAlchemyError] | None = None

    def get(self, database: Engine, accept: str) -> tuple[bytes, str]:
        """Return the page in the format that the scraper accepts, and its content type."""
        # In the version that every scraper knows: the library raises TypeError for some others.
        known = OPENMETRICS in (each.partition(";")[0].strip() for each in accept.split(","))
        encode, content_type = choose_encoder(f"{OPENMETRICS}; version=1.0.0" if known else "")
        with self._lock:
            at, page = self._pages.get(content_type, (0.0, b""))
            if time.monotonic() - at > VALID_SECONDS or not page:
                page = encode(self._read(database))
                self._pages[content_type] = (time.monotonic(), page)
        return page, content_type

    def _read(self, database: Engine) -> Any:
        if self._failed is not None and time.monotonic() - self._failed[0] <= VALID_SECONDS:
            raise self._failed[1].with_traceback(None)
        try:
            with database.connect() as connection:
                return metrics.Collected(metrics.read(connection))
        except SQLAlchemyError as error:
            self._failed = (time.monotonic(), error)
            raise


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": PAGE}, OPENMETRICS: {"schema": PAGE}}}},
)
def show_metrics(request: Request, database: Statements) -> Response:
    """Metrics in Prometheus' text format, or in OpenMetrics if `Accept` names it.

    The scrape token (MINION_METRICS_TOKEN) is enough.
    """
    pages: MetricsPages = request.app.state.metrics_pages
    page, content_type = pages.get(database, request.headers.get("accept", ""))
    return Response(page, headers={"Content-Type": content_type})
