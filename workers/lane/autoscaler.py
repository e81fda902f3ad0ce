"""Celery's autoscaler, for a pool beside a lane."""

from __future__ import annotations

from celery.worker import autoscale, state


class Autoscaler(autoscale.Autoscaler):
    """Sizes the pool by what needs a slot: the tasks that do not run in the lane, and the lane's tool calls."""

    @property
    def qty(self) -> int:
        """Number of tasks and calls."""
        calls = self.worker.lane.calls if self.worker.lane else ()
        return sum(not request.has_model for request in state.reserved_requests) + len(calls)
