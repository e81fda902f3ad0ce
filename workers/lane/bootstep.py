"""Starts and stops the lane with Celery's worker."""

from __future__ import annotations

import threading
from typing import Any

from celery import bootsteps
from celery.worker.components import Pool

from workers.lane.host import Lane


class LaneStep(bootsteps.StartStopStep):
    """The lane of a worker with a prefork pool. Its process starts with the first task of an agent with a model."""

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
