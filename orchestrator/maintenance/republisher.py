"""The republisher: queued tasks whose messages are presumed lost are published again, under the same claim."""

from __future__ import annotations

import structlog
from celery import Celery
from sqlalchemy import Connection, Engine

from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.broker import publish
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import lifecycle

log = structlog.get_logger(__name__)


class Republisher(Loop):
    """Publish messages again. While the broker is away its rounds fail, and there is nothing to publish."""

    name = "republisher"

    def __init__(self, settings: Settings, engine: Engine, app: Celery) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine
        self.app = app

    def run_once(self) -> float:
        """Publish one batch."""
        with self.engine.begin() as connection:
            again = self._presumed_lost(connection)
        if again:
            publish(self.app, again)
            log.warning("published_again", tasks=len(again))
        return seconds_within_lease(self.settings)

    def _presumed_lost(self, connection: Connection) -> list[lifecycle.Dispatched]:
        patience = self.settings.lost_message_seconds
        queues = lifecycle.stalled_queues(connection, patience=patience)
        if not queues:
            return []
        with make_redis() as broker:
            empty = [queue for queue in queues if broker.llen(queue) == 0]
        return lifecycle.republish(connection, lease=self.settings.lease_seconds, patience=patience, empty_queues=empty)
