"""The queues of pending tasks, by namespace and capability, and what is remembered of their age by the hour."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from shared.settings import Settings

MOST_LINES = 10_000
"""Queues of a capability, namespace, tenant and agent that are looked at for their first task."""
MOST_REMEMBERED = 200

# Each line is looked at for its first task, as the gauges do. One that waits for its turn has no time.
READ = text(
    """
    WITH RECURSIVE lines AS (
        (SELECT capability, namespace, key, agent_name, rank, priority FROM task_status
            WHERE state = 'pending' AND capability IS NOT NULL
            ORDER BY capability, namespace, key, agent_name, rank, task_id LIMIT 1)
        UNION ALL
        SELECT n.* FROM lines l CROSS JOIN LATERAL (
            SELECT p.capability, p.namespace, p.key, p.agent_name, p.rank, p.priority FROM task_status p
                WHERE p.state = 'pending' AND (p.capability, p.namespace, p.key, p.agent_name)
                    > (l.capability, l.namespace, l.key, l.agent_name)
                ORDER BY p.capability, p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1) n
    ), live AS MATERIALIZED (
        SELECT DISTINCT c.name FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval)
    ), marked AS (
        SELECT l.*, EXISTS (SELECT FROM pauses x WHERE x.namespace = l.namespace AND (
                       x.scope = 'capability' AND x.name = l.capability OR x.scope = 'agent' AND x.name = l.agent_name
                       OR x.scope = 'key' AND x.name = l.key)) AS paused
            FROM (SELECT * FROM lines LIMIT :most) l WHERE rank < minion_parked()
    )
    SELECT namespace, capability, capability IN (SELECT name FROM live) AS served,
           GREATEST(0, extract(epoch FROM now()) - min(rank + priority * 60000000::bigint)
                           FILTER (WHERE NOT paused) / 1e6)::float8 AS age
        FROM marked GROUP BY namespace, capability
    """
)
REMEMBER = text(
    """
    INSERT INTO watched_hours AS w (bucket, namespace, capability, samples, seconds)
        VALUES (date_trunc('hour', now(), 'UTC'), :namespace, :capability, 1, :seconds)
        ON CONFLICT (bucket, namespace, capability) DO UPDATE
            SET samples = w.samples + 1, seconds = w.seconds + EXCLUDED.seconds
    """
)


@dataclass(frozen=True, slots=True)
class Queue:
    """Pending tasks of a capability in a namespace.

    Attributes:
        served: a live worker serves it.
        age: seconds for which the first task that is not paused has been due.
    """

    namespace: str
    capability: str
    served: bool
    age: float


def read(connection: Connection, settings: Settings) -> list[Queue]:
    """Return the queues with pending tasks."""
    values = {"lease": timedelta(seconds=settings.lease_seconds), "most": MOST_LINES}
    return [
        Queue(row["namespace"], row["capability"], row["served"], row["age"] or 0.0)
        for row in connection.execute(READ, values).mappings()
    ]


def remember(connection: Connection, queues: list[Queue]) -> None:
    """Add the ages of the queues to those of this hour, and that it is watched."""
    oldest = sorted(queues, key=lambda queue: -queue.age)[:MOST_REMEMBERED]
    rows = [{"namespace": each.namespace, "capability": each.capability, "seconds": each.age} for each in oldest]
    ordered = sorted(rows, key=lambda row: (str(row["namespace"]), str(row["capability"])))
    connection.execute(REMEMBER, [{"namespace": "", "capability": "", "seconds": 0.0}, *ordered])


def hour_of(moment: datetime) -> int:
    """Return the number of an hour."""
    return int(moment.timestamp()) // 3600
