"""Canaries: a version that gets a share of an agent's new tasks, beside the active one.

Every change is one transaction with its row of the audit log. It locks the agent first, so that a person and the
orchestrator cannot decide at the same time. `shared/tasks/sql/canary.sql` chooses the version of a task.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from shared.access.actors import Actor
from shared.audit import log
from shared.contracts import shares
from shared.errors import InvalidInput

LOCK = text("SELECT 1 FROM agents WHERE id = :agent FOR NO KEY UPDATE")
OPEN = text(
    """
    SELECT c.id, c.version_id, c.share, v.number AS version, b.number AS baseline,
           c.max_failures, c.max_cost, c.max_score_drop, c.min_tasks
        FROM canaries c JOIN agent_versions v ON v.id = c.version_id JOIN agent_versions b ON b.id = c.baseline_id
        WHERE c.agent_id = :agent AND c.ended_at IS NULL
    """
)
END = text(
    "UPDATE canaries SET ended_at = now(), outcome = :outcome, reason = COALESCE(:reason, reason) WHERE id = :id"
)
START = text(
    """
    INSERT INTO canaries (agent_id, version_id, baseline_id, share, max_failures, max_cost, max_score_drop, min_tasks,
                          reason)
        SELECT id, :version, active_version_id, :share, :max_failures, :max_cost, :max_score_drop, :min_tasks, :reason
            FROM agents WHERE id = :agent
    """
)


@dataclass(frozen=True, slots=True)
class Bands:
    """How much worse than the active version a canary may be before it is rolled back.

    Attributes:
        max_failures: additional share of failed tasks: 0.05 is five percentage points.
        max_cost: additional cost of a task on average: 0.5 is half as much again.
        max_score_drop: how much lower the mean score of an evaluator may be; scores are between 0 and 1.
        min_tasks: nothing is decided before this many tasks of each version have ended.
    """

    max_failures: float = 0.05
    max_cost: float = 0.5
    max_score_drop: float = 0.1
    min_tasks: int = 20

    def __post_init__(self) -> None:
        """Raises InvalidInput if a value makes no sense."""
        if not 0 <= self.max_failures <= 1 or not 0 <= self.max_score_drop <= 1:
            raise InvalidInput("max_failures and max_score_drop of a canary must be between 0 and 1.")
        if not 0 <= self.max_cost <= 1000:
            raise InvalidInput("max_cost of a canary must be between 0 and 1000: 0.5 is half as much again.")
        if not 5 <= self.min_tasks <= 1_000_000:
            raise InvalidInput("min_tasks of a canary must be between 5 and 1,000,000: fewer tasks prove nothing.")


BANDS = tuple(each.name for each in fields(Bands))


def parse_share(share: str) -> int:
    """Return a share such as `10%` in hundredths of a percent.

    Raises:
        InvalidInput: it is none.
    """
    try:
        return shares.hundredths_of(shares.checked(share))
    except ValueError as error:
        raise InvalidInput(f"Invalid share {str(share)[:20]!r}: {error}.") from None


def lock(connection: Connection, agent: UUID) -> None:
    """Let no other transaction change the agent or its canary until this one ends."""
    connection.execute(LOCK, {"agent": agent})


def find(connection: Connection, agent: UUID) -> RowMapping | None:
    """Return the open canary of an agent, with its version, baseline and share."""
    return connection.execute(OPEN, {"agent": agent}).mappings().one_or_none()


def start(
    connection: Connection,
    actor: Actor,
    agent: UUID,
    name: str,
    version: UUID,
    share: int,
    *,
    namespace: str,
    bands: dict[str, Any],
    reason: str | None,
) -> None:
    """Give a version a share of the new tasks, or change the share that it has. The share that it has already leaves
    the canary and its figures as they are.

    Args:
        share: in hundredths of a percent.
        bands: fields of `Bands` that were given; the others are those of the earlier share, or the defaults.
    """
    lock(connection, agent)
    before = find(connection, agent)
    changes = before is not None and before["version_id"] == version
    if before is not None and changes:
        bands = {name: before[name] for name in BANDS} | bands
        if before["share"] == share and all(before[name] == value for name, value in bands.items()):
            return
        connection.execute(END, {"id": before["id"], "outcome": "changed", "reason": None})
    elif before is not None:
        end(connection, actor, agent, name, namespace=namespace, outcome="ended", reason=reason)
    values = {"agent": agent, "version": version, "share": share, "reason": reason, **asdict(Bands(**bands))}
    connection.execute(START, values)
    facts = log.changed(_facts(before) if changes else None, _facts(find(connection, agent)))
    if reason is not None:
        facts["after"] = {**(facts["after"] or {}), "reason": reason}
    log.record(connection, actor, "canary.change" if changes else "canary.start", name, namespace=namespace, **facts)


def end(
    connection: Connection,
    actor: Actor,
    agent: UUID,
    name: str,
    *,
    namespace: str,
    outcome: str,
    reason: str | None,
    figures: dict[str, Any] | None = None,
) -> bool:
    """End the open canary of an agent, if there is one. Its tasks that were accepted keep their version.

    Args:
        outcome: `completed`, `rolled_back` or `ended`.
        figures: for the audit log.
    """
    lock(connection, agent)
    before = find(connection, agent)
    if before is None:
        return False
    connection.execute(END, {"id": before["id"], "outcome": outcome, "reason": reason})
    after = {"reason": reason} | ({"figures": figures} if figures else {})
    log.record(connection, actor, ACTS[outcome], name, namespace=namespace, before=_facts(before), after=after)
    return True


ACTS = {"completed": "canary.complete", "rolled_back": "canary.roll_back", "ended": "canary.end"}


def _facts(canary: RowMapping | None) -> dict[str, Any] | None:
    if canary is None:
        return None
    return {name: canary[name] for name in ("version", "baseline", *BANDS)} | {
        "share": shares.share_of(canary["share"])
    }
