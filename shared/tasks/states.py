"""The states of a task and the only table of permitted transitions.

The database refuses every other transition (trigger `task_status_transition`), and a test compares
the two. `diagram()` draws the table for the documentation.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """State of a task in its life."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """True if the task can no longer change."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
INITIAL = frozenset({State.SCHEDULED, State.PENDING})
LIVE = frozenset(State) - FINAL

TRANSITIONS: dict[tuple[State, State], str] = {
    (State.SCHEDULED, State.PENDING): "due",
    (State.PENDING, State.QUEUED): "dispatched to the capability's queue",
    (State.QUEUED, State.RUNNING): "claimed (claim + 1)",
    (State.QUEUED, State.PENDING): "paused, limited, or its message given up",
    (State.RUNNING, State.WAITING): "sub-task, approval, back-off, limit",
    (State.WAITING, State.PENDING): "woken",
    (State.RUNNING, State.PENDING): "crash or hand-back",
    (State.RUNNING, State.SUCCEEDED): "done",
    (State.PENDING, State.FAILED): "invalid input, no such agent",
    (State.RUNNING, State.FAILED): "error is final, or attempts used up",
    (State.WAITING, State.FAILED): "a sub-task's or person's verdict",
    **{(state, State.CANCELLED): "cancelled" for state in sorted(LIVE)},
    **{(state, State.EXPIRED): "deadline passed" for state in sorted(LIVE)},
}


def allowed(before: State, after: State) -> bool:
    """Return whether a task may go from one state to the other."""
    return (before, after) in TRANSITIONS


def diagram() -> str:
    """Return the transition table as text: a line for each state's beginning and for each transition."""
    lines = [f"{'(new)':9} -> {state}" for state in sorted(INITIAL)]
    lines += [f"{before:9} -> {after:9}  {why}" for (before, after), why in TRANSITIONS.items()]
    return "\n".join(lines)
