"""Ranking agents by the words of a message: PostgreSQL full-text search over name, capabilities, description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.errors import AmbiguousRoute

MAX_LISTED = 10

# Any word may match (websearch syntax would require all); the weights put the name before the description.
RANK = text(
    r"""
    WITH query AS (
        SELECT CAST(string_agg(
            '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', ' | ') AS tsquery) AS words
            FROM unnest(to_tsvector('english', :message))
    )
    SELECT a.name, v.id, v.capability, ts_rank('{0.1, 0.4, 0.7, 1.0}', v.search, query.words) AS score
        FROM agents a JOIN agent_versions v ON v.id = a.active_version_id, query
        WHERE a.namespace = :namespace AND a.status <> 'disabled' AND v.search @@ query.words
          AND (CAST(:among AS text[]) IS NULL OR a.name = ANY (CAST(:among AS text[])))
        ORDER BY score DESC, a.name LIMIT 10
    """
)
NAMES = text(
    "SELECT name FROM agents WHERE namespace = :namespace AND status <> 'disabled' AND active_version_id IS NOT NULL "
    "AND (CAST(:among AS text[]) IS NULL OR name = ANY (CAST(:among AS text[]))) ORDER BY name LIMIT 11"
)


VERSION_OF = text(
    "SELECT v.id, v.capability FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.status <> 'disabled' AND a.name = :name"
)
CANDIDATES = text(
    "SELECT a.name, v.description, v.capabilities FROM agents a JOIN agent_versions v ON v.id = a.active_version_id "
    "WHERE a.namespace = :namespace AND a.status <> 'disabled' AND a.name = ANY (CAST(:among AS text[])) "
    "ORDER BY a.name"
)


@dataclass(frozen=True)
class Route:
    """The agent that a message is routed to, and the scores of the others.

    Attributes:
        by: the basis of the decision: the words of the message (`text`), or `MINION_ROUTING_AGENT` (`setting`).
    """

    agent: str
    version_id: UUID
    capability: str
    scores: dict[str, float]
    by: str = "text"

    def as_json(self) -> dict[str, Any]:
        """Return the decision as JSON, for the record."""
        return {"by": self.by, "agent": self.agent, "scores": self.scores}


def ranked(
    connection: Connection, message: str, *, namespace: str = "default", among: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the scores of the ten agents that fit the message best, the best first."""
    return {row.name: round(row.score, 6) for row in connection.execute(RANK, _values(message, namespace, among))}


def choose(
    connection: Connection, message: str, *, namespace: str = "default", among: Sequence[str] | None = None
) -> Route:
    """Return the agent whose name, capabilities and description fit the message best.

    Args:
        among: the names to choose from; None for all.

    Raises:
        AmbiguousRoute: none fits, or the best ones fit equally well; the message lists the candidates.
    """
    values = _values(message, namespace, among)
    rows = connection.execute(RANK, values).all()
    if not rows:
        names = list(connection.scalars(NAMES, values))
        listed = ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")
        raise AmbiguousRoute(
            f"No agent fits the message. Name one of: {listed}."
            if names
            else "There is no agent to send the message to.",
            candidates=names[:MAX_LISTED],
        )
    best = rows[0]
    tied = [row.name for row in rows if abs(row.score - best.score) < 1e-6]
    if len(tied) > 1:
        raise AmbiguousRoute(
            f"Several agents fit the message equally well: {', '.join(tied)}. Name one of them.", candidates=tied
        )
    return Route(best.name, best.id, best.capability, {row.name: round(row.score, 6) for row in rows})


def by_setting(connection: Connection, name: str, *, namespace: str = "default") -> Route | None:
    """Return the agent that all messages of an installation go to; None if the namespace has no agent of that name."""
    row = connection.execute(VERSION_OF, {"namespace": namespace, "name": name}).one_or_none()
    return Route(name, row.id, row.capability, {name: 1.0}, by="setting") if row else None


def candidates(connection: Connection, among: Sequence[str], *, namespace: str = "default") -> list[dict[str, Any]]:
    """Return name, description and capabilities of those agents that may be chosen."""
    return [
        dict(row) for row in connection.execute(CANDIDATES, {"namespace": namespace, "among": list(among)}).mappings()
    ]


def _values(message: str, namespace: str, among: Sequence[str] | None) -> dict[str, Any]:
    return {"message": message[:10_000], "namespace": namespace, "among": list(among) if among else None}
