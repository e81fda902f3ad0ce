"""The pruner: now and then, what is older than its retention is deleted."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loop import Loop
from orchestrator.retention import prune
from orchestrator.task_export import TaskExport
from shared.settings import Settings

log = structlog.get_logger(__name__)

# A pass reads what is old and kept, so it is not made more often than days need.
EVERY_SECONDS = 900.0
# Between two batches, so that vacuum, replicas and the disk keep up.
PAUSE_SECONDS = 0.2


class Pruner(Loop):
    """Deletes old tasks in small batches. Every orchestrator may do it: what one has locked the others pass over."""

    name = "pruner"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        """Raises NotConfigured where the folder for the export is not there."""
        super().__init__()
        self.settings = settings
        self.engine = engine
        if settings.retention_export is not None:
            TaskExport(settings.retention_export)

    def round(self) -> float:
        """One pass over everything that has ended."""
        trees = tasks = 0
        for batch in prune(self.engine, self.settings):
            trees, tasks = trees + batch.trees, tasks + batch.tasks
            if self.stopping.wait(PAUSE_SECONDS):
                break
        if tasks:
            log.info("pruned", trees=trees, tasks=tasks)
        return EVERY_SECONDS
