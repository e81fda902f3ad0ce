"""The trace of a task, for the server that a tool calls."""

from __future__ import annotations

from shared.settings import get_settings
from shared.trace_context import Trace, step_span
from workers.task import ClaimedTask


def traceparent_of(task: ClaimedTask, step: int) -> str | None:
    """Return the `traceparent` with which a server continues the task's trace.

    The parent is the step's span if it will be exported, else the caller's span; None if there is neither.
    """
    trace = Trace.of(task.root_id, task.traceparent)
    exported = get_settings().traces_endpoint() is not None and trace.sampled
    parent = step_span(task.id, step) if exported else trace.caller
    return trace.parent(parent) if parent else None
