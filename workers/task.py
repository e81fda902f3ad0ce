"""A task from the point of view of the minion that claimed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.contracts.strict_json import JsonValue


@dataclass(frozen=True)
class ClaimedTask:
    """Result of `minion_claim`: the pinned task and the journal of its earlier executions.

    Attributes:
        claim: the fencing token of this execution.
        worker_id: this worker's row.
        stream_key: this execution's secret, for the tags of what it streams.
        attempts: charged failures so far.
        budget_ids: the tasks whose budgets apply to it, the root first.
        history_before: messages of its conversation from this time on are not visible to it.
    """

    id: UUID
    root_id: UUID
    origin_id: UUID
    claim: int
    worker_id: UUID
    stream_key: bytes = field(repr=False)
    attempts: int
    agent_version_id: UUID
    agent_name: str
    queue: str
    namespace: str
    depth: int
    journal_format: int
    input: JsonValue = None
    messages: list[Any] | None = None
    conversation_id: str | None = None
    deadline: datetime | None = None
    created_at: datetime | None = None
    budget_ids: list[str] | None = None
    history_before: datetime | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> ClaimedTask:
        """Build it from the row that `shared.tasks.lifecycle.claim` returned."""
        ids = ("id", "root_id", "origin_id", "worker_id", "agent_version_id")
        times = ("deadline", "created_at", "history_before")
        values = {name: row[name] for name in cls.__dataclass_fields__}
        values |= {name: UUID(row[name]) for name in ids}
        values["stream_key"] = bytes.fromhex(row["stream_key"])
        values |= {name: datetime.fromisoformat(row[name]) if row[name] else None for name in times}
        return cls(**values)

    @property
    def has_budget(self) -> bool:
        """True if its own budget, or that of a task above it, applies."""
        return bool(self.budget_ids)

    def context(self) -> dict[str, Any]:
        """The context of a function that `requires_context`."""
        return {
            "task_id": str(self.id),
            "attempt": self.attempts + 1,
            "conversation_id": self.conversation_id,
            "agent": self.agent_name,
            "deadline": self.deadline.isoformat() if self.deadline else None,
        }
