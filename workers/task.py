"""A task from the point of view of the minion that claimed it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from shared.contracts.requests import Lane
from shared.contracts.strict_json import JsonValue
from shared.tasks.records import Claimed, KnownStep


@dataclass(frozen=True)
class ClaimedTask:
    """Result of `minion_claim`: the pinned task and the journal of its earlier executions.

    Attributes:
        claim: the fencing token of this execution.
        worker_id: this worker's row.
        stream_key: this execution's secret, for the tags of what it streams.
        attempts: charged failures so far.
        key: the tenant key.
        budget_ids: the tasks whose budgets apply to it, the root first.
        history_before: messages of its conversation from this time on are not visible to it.
        traceparent: the caller's span.
        lane: that of its model calls; None: its agent's.
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
    key: str | None = None
    input: JsonValue = None
    messages: list[Any] | None = None
    conversation_id: str | None = None
    deadline: datetime | None = None
    created_at: datetime | None = None
    budget_ids: list[str] | None = None
    history_before: datetime | None = None
    traceparent: str | None = None
    lane: Lane | None = None
    steps: list[KnownStep] = field(default_factory=list)

    @classmethod
    def of(cls, row: Claimed) -> ClaimedTask:
        """Build it from the row that `shared.tasks.lifecycle.claim` returned."""
        return cls(
            id=UUID(row["id"]),
            root_id=UUID(row["root_id"]),
            origin_id=UUID(row["origin_id"]),
            claim=row["claim"],
            worker_id=UUID(row["worker_id"]),
            stream_key=bytes.fromhex(row["stream_key"]),
            attempts=row["attempts"],
            agent_version_id=UUID(row["agent_version_id"]),
            agent_name=row["agent_name"],
            queue=row["queue"],
            namespace=row["namespace"],
            depth=row["depth"],
            journal_format=row["journal_format"],
            key=row["key"],
            input=row["input"],
            messages=row["messages"],
            conversation_id=row["conversation_id"],
            deadline=_time(row["deadline"]),
            created_at=_time(row["created_at"]),
            budget_ids=row["budget_ids"],
            history_before=_time(row["history_before"]),
            traceparent=row["traceparent"],
            lane=row.get("lane"),
            steps=row["steps"],
        )

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


def _time(stored: str | None) -> datetime | None:
    return datetime.fromisoformat(stored) if stored else None
