"""Starts and stops the lane with Celery's worker."""

from __future__ import annotations

import threading
from typing import Any

import structlog
from celery import bootsteps
from celery.worker.components import Pool
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared.database.connections import autocommit, close_engine, get_engine, reason
from workers.lane.host import Lane

log = structlog.get_logger(__name__)

SERVES_A_MODEL = text(
    "SELECT EXISTS (SELECT 1 FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE v.type = 'agent' AND v.capabilities && :capabilities)"
)


class LaneStep(bootsteps.StartStopStep):
    """The lane of a worker with a prefork pool.

    Its process starts with the worker if that serves an agent with a model, else with the first task of such an agent.
    """

    requires = (Pool,)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        worker.lane = None

    def include_if(self, worker: Any) -> bool:
        """Other pools run all tasks themselves: their calls could not be killed."""
        return "prefork" in str(worker.pool_cls)

    def create(self, worker: Any) -> None:
        """Put the lane in front of the pool."""
        lane, run_in_slot, wait = Lane(worker), worker.process_task, worker.wait_for_soft_shutdown
        worker.lane = lane
        worker.process_task = lambda request: lane.run(request) if request.has_model else run_in_slot(request)

        def wait_for_soft_shutdown() -> None:
            lane.announce()
            wait()
            lane.end_calls()

        # Celery sleeps there, in the handler of a signal.
        worker.wait_for_soft_shutdown = wait_for_soft_shutdown

    def start(self, worker: Any) -> None:
        """Start the process if a task may need it: that takes seconds, in which the first task would wait."""
        try:
            with autocommit(get_engine()).connect() as connection:
                capabilities = list(worker.app.amqp.queues.consume_from)
                if connection.scalar(SERVES_A_MODEL, {"capabilities": capabilities}):
                    worker.lane.warm_up()
        except (DBAPIError, OSError) as error:
            log.warning("lane_starts_later", reason=reason(error))
        finally:
            close_engine()

    def register_with_event_loop(self, worker: Any, hub: Any) -> None:
        """Join the event loop when it starts, and when it starts again after the broker was away."""
        worker.lane.register(hub)

    def close(self, worker: Any) -> None:
        """Begin nothing more. The event loop has ended."""
        worker.lane.drain()

    def stop(self, worker: Any) -> None:
        """Wait for the lane and for the slots, whose results it needs. No event loop serves both any more."""
        lane = threading.Thread(target=worker.lane.finish, name="lane-ends")
        lane.start()
        worker.pool.stop()
        worker.lane.abandon_calls()
        lane.join()

    def terminate(self, worker: Any) -> None:
        """Kill the lane."""
        worker.lane.terminate()
