"""The cache keeper: deletes cached results that have expired, and keeps the others within their bounds."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop
from shared.settings import Settings
from shared.tasks import cached_results

log = structlog.get_logger(__name__)

# The table may exceed its bounds by what is stored in between.
EVERY_SECONDS = 5.0
BATCH = 5000


class CacheKeeper(Loop):
    """Tidies the cached results. Every orchestrator may run it: each skips the rows that another has locked."""

    name = "cache_keeper"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine

    def run_once(self) -> float:
        """Delete one batch."""
        with self.engine.begin() as connection:
            expired, evicted = cached_results.tidy(
                connection, rows=self.settings.cache_rows, size=self.settings.cache_bytes, limit=BATCH
            )
        if evicted:
            log.info("cached_results_evicted", results=evicted)
        return 0.0 if BATCH in (expired, evicted) else EVERY_SECONDS
