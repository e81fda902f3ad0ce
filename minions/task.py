"""A task as the client shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from minions.errors import TaskFailed

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
TIMES = frozenset({"due_at", "deadline", "created_at", "queued_at", "updated_at", "finished_at"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """A task in a list: without its input, messages and output, which `Client.get` brings.

    States are scheduled, pending, queued, running, waiting, and finally succeeded, failed, cancelled or expired.
    """

    id: str
    agent: str | None
    state: str
    created_at: datetime
    namespace: str = "default"
    agent_version: int | None = None
    capability: str | None = None
    priority: int = 0
    error: dict[str, Any] | None = None
    error_fingerprint: str | None = None
    conversation_id: str | None = None
    key: str | None = None
    labels: dict[str, str]
    parent_id: str | None = None
    root_id: str
    depth: int = 0
    replay_of: str | None = None
    submitted_by: str | None = None
    claim: int = 0
    attempts: int = 0
    losses: int = 0
    worker_id: str | None = None
    open_waits: int = 0
    wait_reason: str | None = None
    due_at: datetime | None = None
    cancel_requested: bool = False
    deadline: datetime | None = None
    queued_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the task any more."""
        return self.state in FINAL

    @property
    def succeeded(self) -> bool:
        """Whether it is done."""
        return self.state == "succeeded"

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The task that the API's JSON describes. Members that this release does not know are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: _value(name, value) for name, value in data.items() if name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(TaskSummary):
    """A task with everything that is known about it."""

    input: Any = None
    messages: list[Any] | None = None
    output: Any = None
    origin_id: str | None = None
    agent_version_id: str | None = None
    traceparent: str | None = None
    budget: dict[str, Any] | None = None
    routing: dict[str, Any] | None = None
    decision: dict[str, Any] | None = None
    """What `Client.decide` decided: `step`, `name`, `proposal`, `verdict`, `value`."""

    def result(self) -> Any:
        """The output of a task that succeeded.

        Raises:
            TaskFailed: it did not, or has not ended yet.
        """
        if self.succeeded:
            return self.output
        why = (self.error or {}).get("message") or f"Task {self.id} is {self.state}."
        raise TaskFailed(why, task=self)


def _value(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if name in TIMES and value is not None else value
