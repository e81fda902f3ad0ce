"""Retention of what models remember: unused stores and replaced versions are deleted."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from shared.memories import store
from shared.settings import Settings

log = structlog.get_logger(__name__)

BATCH = 500


def prune_memories(engine: Engine, settings: Settings) -> int:
    """Delete stores that no task has used for `MINION_RETENTION_MEMORY` days, and versions that were replaced before
    then; return the number of stores.
    """
    if not settings.retention_memory:
        return 0
    stores = versions = 0
    pruned = replaced = BATCH
    while BATCH in (pruned, replaced):
        with engine.begin() as connection:
            pruned, replaced = store.prune(connection, settings.retention_memory, BATCH)
        stores, versions = stores + pruned, versions + replaced
    if stores or versions:
        log.info("memory_pruned", stores=stores, versions=versions)
    return stores
