"""The pruner: periodically deletes what is older than its retention: tasks, files, memory, audit rows."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop
from orchestrator.retention.audit import prune_audit
from orchestrator.retention.export import TaskExport
from orchestrator.retention.files import prune_files
from orchestrator.retention.memories import prune_memories
from orchestrator.retention.retention import prune
from shared.settings import Settings

log = structlog.get_logger(__name__)

# A pass reads old tasks that are kept, so it runs no more often than retentions in days need.
EVERY_SECONDS = 900.0
# Between two batches, so that vacuum, replicas and the disk keep up.
PAUSE_SECONDS = 0.2


class Pruner(Loop):
    """Deletes old tasks in small batches. Every orchestrator may run it: others skip the tasks that one has locked."""

    name = "pruner"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        """Raise NotConfigured if the folder for the export does not exist."""
        super().__init__()
        self.settings = settings
        self.engine = engine
        if settings.retention_export is not None:
            TaskExport(settings.retention_export)

    def run_once(self) -> float:
        """Make one pass over all ended tasks."""
        trees = tasks = 0
        for batch in prune(self.engine, self.settings):
            trees, tasks = trees + batch.trees, tasks + batch.tasks
            if self.stopping.wait(PAUSE_SECONDS):
                break
        if tasks:
            log.info("pruned", trees=trees, tasks=tasks)
        if deleted := prune_files(self.engine, self.settings):
            log.info("files_pruned", files=deleted)
        prune_audit(self.engine, self.settings)
        prune_memories(self.engine, self.settings)
        return EVERY_SECONDS
