"""Gauges: the present state of the installation, in the form of Prometheus samples.

The leader reads them for all orchestrators. Tasks that have ended are not counted: there may be millions, and counters
say how many there were.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, RowMapping, text

from shared.errors import MinionError
from shared.settings import Settings

Sample = tuple[dict[str, str], float]
Gauges = dict[str, list[Sample]]
"""Samples by the metric's name; `orchestrator.observe.metrics` describes the metrics."""

MOST_CAPABILITIES = 200
OTHER = "other"
PEOPLE = ("approval", "answer")
MOST_DEAD_LETTERS = 10_000
MOST_LINES = 10_000
"""Queues that are looked at for their first task."""

HAS_RULES = text("SELECT EXISTS (SELECT FROM pauses) OR EXISTS (SELECT FROM limits) OR EXISTS (SELECT FROM rate_holds)")
# Pending tasks by the reason that `minion why` gives, and `since` when the first in line were accepted, or due. Without
# pauses, limits and holds, tasks of a capability have one reason, but for those that wait for their turn in a
# conversation: the tasks are counted in the index, and no more is read of them. Each queue (of a capability, namespace,
# tenant and agent) is looked at for its first task.
PENDING = text(
    """
    WITH RECURSIVE names AS (
        SELECT min(capability) AS capability FROM task_status WHERE state = 'pending'
        UNION ALL
        SELECT (SELECT min(p.capability) FROM task_status p WHERE p.state = 'pending' AND p.capability > n.capability)
            FROM names n WHERE n.capability IS NOT NULL
    ), lines AS (
        (SELECT capability, namespace, key, agent_name, rank, priority FROM task_status
            WHERE state = 'pending' AND capability IS NOT NULL
            ORDER BY capability, namespace, key, agent_name, rank, task_id LIMIT 1)
        UNION ALL
        SELECT n.* FROM lines l CROSS JOIN LATERAL (
            SELECT p.capability, p.namespace, p.key, p.agent_name, p.rank, p.priority FROM task_status p
                WHERE p.state = 'pending' AND (p.capability, p.namespace, p.key, p.agent_name)
                    > (l.capability, l.namespace, l.key, l.agent_name)
                ORDER BY p.capability, p.namespace, p.key, p.agent_name, p.rank, p.task_id LIMIT 1) n
    ), first AS (
        SELECT capability, min(rank + priority * 60000000::bigint) FILTER (WHERE rank < minion_parked()) AS since
            FROM (SELECT * FROM lines LIMIT :most_lines) l GROUP BY capability
    ), live AS MATERIALIZED (
        SELECT DISTINCT c.name FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval)
    ), counted AS (
        SELECT n.capability,
               CASE WHEN n.capability IN (SELECT name FROM live) THEN 'in_line' ELSE 'unserved' END AS reason,
               (SELECT count(*) FROM task_status p
                    WHERE p.state = 'pending' AND p.capability = n.capability) AS tasks,
               (SELECT count(*) FROM task_status p WHERE p.state = 'pending' AND p.capability = n.capability
                    AND p.rank = 9000000000000000000) AS parked
            FROM names n WHERE n.capability IS NOT NULL
        UNION ALL
        SELECT '', 'not_routed', count(*), 0 FROM task_status WHERE state = 'pending' AND capability IS NULL
    )
    SELECT c.capability, r.reason, r.tasks,
           CASE WHEN r.reason <> 'turn' THEN to_timestamp(f.since / 1e6) END AS since
        FROM counted c LEFT JOIN first f USING (capability) CROSS JOIN LATERAL (
            VALUES (c.reason, c.tasks - c.parked), ('turn', c.parked)) AS r (reason, tasks)
        WHERE r.tasks > 0
    """
)
# The same with rules: each queue has its reason.
PENDING_WITH_RULES = text(
    """
    WITH lines AS MATERIALIZED (
        SELECT capability, namespace, key, agent_name, count(*) AS tasks,
               count(*) FILTER (WHERE rank >= minion_parked()) AS parked, min(rank) AS rank
            FROM task_status WHERE state = 'pending' GROUP BY capability, namespace, key, agent_name
    ), live AS MATERIALIZED (
        SELECT DISTINCT c.name FROM workers w, unnest(w.capabilities) AS c (name)
            WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval)
    ), running AS MATERIALIZED (
        SELECT namespace, capability, key, agent_name, count(*) AS n FROM task_status
            WHERE state = 'running' AND EXISTS (SELECT FROM limits) GROUP BY 1, 2, 3, 4
    ), explained AS (
        SELECT l.*, CASE
            WHEN l.capability IS NULL THEN 'not_routed'
            WHEN EXISTS (SELECT FROM pauses x WHERE x.namespace = l.namespace AND (
                    x.scope = 'capability' AND x.name = l.capability OR x.scope = 'agent' AND x.name = l.agent_name
                    OR x.scope = 'key' AND x.name = l.key)) THEN 'paused'
            WHEN EXISTS (SELECT FROM limits) AND EXISTS (
                SELECT FROM minion_limits_of(l.namespace, l.capability, l.agent_name, l.key) m
                    WHERE m.max_running <= (SELECT COALESCE(sum(r.n), 0) FROM running r
                        WHERE r.namespace = l.namespace AND CASE m.scope
                            WHEN 'capability' THEN r.capability = l.capability
                            WHEN 'agent' THEN r.agent_name = l.agent_name ELSE r.key = l.key END)) THEN 'limited'
            WHEN EXISTS (SELECT FROM rate_holds x WHERE x.namespace = l.namespace AND x.until_at > now() AND (
                    x.scope = 'capability' AND x.name = l.capability OR x.scope = 'agent' AND x.name = l.agent_name
                    OR x.scope = 'key' AND x.name = l.key)) THEN 'rate_limited'
            WHEN l.capability NOT IN (SELECT name FROM live) THEN 'unserved'
            ELSE 'in_line' END AS reason
            FROM lines l
    )
    SELECT COALESCE(e.capability, '') AS capability, r.reason, sum(r.tasks)::bigint AS tasks,
           min((SELECT to_timestamp((p.rank + p.priority * 60000000::bigint) / 1e6) FROM task_status p
                    WHERE p.state = 'pending' AND p.capability = e.capability AND p.namespace = e.namespace
                      AND p.key = e.key AND p.agent_name = e.agent_name AND p.rank = e.rank LIMIT 1))
               FILTER (WHERE e.rank < minion_parked()) AS since
        FROM explained e CROSS JOIN LATERAL (
            VALUES (e.reason, e.tasks - e.parked), ('turn', e.parked)) AS r (reason, tasks)
        WHERE r.tasks > 0 GROUP BY 1, 2
    """
)
OTHERS = text(
    """
    SELECT COALESCE(capability, '') AS capability, state, COALESCE(wait_reason, '') AS reason, count(*) AS tasks,
           min(updated_at) AS since
        FROM task_status WHERE state IN ('scheduled', 'queued', 'running', 'waiting') GROUP BY 1, 2, 3
    """
)
WORKERS = text(
    """
    SELECT c.name AS capability, count(*) AS workers, sum(w.slots) AS slots, sum(w.busy) AS busy
        FROM workers w, unnest(w.capabilities) AS c (name)
        WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval) GROUP BY c.name
    """
)
BLOCKING = text(
    """
    SELECT count(*) FROM standing_budgets b
        CROSS JOIN LATERAL minion_period(b.period, b.timezone, clock_timestamp()) p
        JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
        WHERE b.on_breach <> 'alert' AND (u.spent_tokens + u.reserved_tokens >= b.tokens
                                          OR u.spent_microdollars + u.reserved_microdollars >= b.microdollars)
    """
)
DEAD_LETTERS = text(
    """
    SELECT count(*) FROM (
        SELECT FROM task_outcomes o WHERE o.state = 'failed' AND o.error->>'type' <> 'subtask_failed'
              AND (SELECT t.journal_format FROM tasks t WHERE t.id = o.task_id) <> 3
              AND NOT EXISTS (SELECT FROM tasks r WHERE r.replay_of = o.task_id) LIMIT :most) AS failed
    """
)
ALERTS = text("SELECT rule, state, count(*) AS alerts FROM alerts WHERE state <> 'resolved' GROUP BY rule, state")
# From the message to the claim.
DISPATCH = text(
    """
    SELECT COALESCE(avg(GREATEST(extract(epoch FROM updated_at - published_at), 0)), 0)::float8 FROM task_status
        WHERE state = 'running' AND published_at IS NOT NULL
    """
)
POSTGRES = text(
    """
    SELECT count(*) AS connections, current_setting('max_connections')::integer AS most,
           COALESCE(max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE backend_xid IS NOT NULL), 0)
               ::float8 AS oldest
        FROM pg_stat_activity
    """
)
NOW = text("SELECT clock_timestamp()")


def read(connection: Connection, settings: Settings) -> Gauges:
    """Return the gauges of this moment."""
    gauges: Gauges = {}
    values = {"lease": timedelta(seconds=settings.lease_seconds), "most_lines": MOST_LINES}
    began = time.monotonic()
    now = connection.execute(NOW).scalar_one()
    gauges["minions_postgres_ping_seconds"] = [({}, time.monotonic() - began)]
    rules = connection.execute(HAS_RULES).scalar_one()
    pending = connection.execute(PENDING_WITH_RULES if rules else PENDING, values).mappings().all()
    others = connection.execute(OTHERS).mappings().all()
    gauges |= _tasks(pending, others)
    gauges |= _ages(pending, others, now)
    gauges |= _workers(connection.execute(WORKERS, values).mappings().all())
    gauges["minions_dispatch_seconds"] = [({}, connection.execute(DISPATCH).scalar_one())]
    gauges["minions_dead_letters"] = [({}, connection.execute(DEAD_LETTERS, {"most": MOST_DEAD_LETTERS}).scalar_one())]
    gauges["minions_budgets_blocking"] = [({}, connection.execute(BLOCKING).scalar_one())]
    gauges["minions_alerts"] = [
        ({"rule": row.rule, "state": row.state}, row.alerts) for row in connection.execute(ALERTS)
    ]
    postgres = connection.execute(POSTGRES).one()
    gauges["minions_postgres_connections"] = [({}, postgres.connections)]
    gauges["minions_postgres_connections_max"] = [({}, postgres.most)]
    gauges["minions_postgres_oldest_transaction_seconds"] = [({}, max(0.0, postgres.oldest))]
    return gauges | _broker(settings)


def _tasks(pending: Any, others: Any) -> Gauges:
    states: dict[tuple[str, str], float] = {}
    reasons: dict[str, float] = {}
    for row in pending:
        _count(states, (row["capability"], "pending"), row)
        _count(reasons, row["reason"], row)
    for row in others:
        _count(states, (row["capability"], row["state"]), row)
        if row["state"] == "waiting":
            _count(reasons, row["reason"], row)
    kept = _kept({capability for capability, _ in states})
    samples: dict[tuple[str, str], float] = {}
    for (capability, state), tasks in states.items():
        name = (kept.get(capability, OTHER), state)
        samples[name] = samples.get(name, 0) + tasks
    return {
        "minions_open_tasks": [
            ({"capability": name, "state": state}, n) for (name, state), n in sorted(samples.items())
        ],
        "minions_waiting_tasks": [({"reason": reason}, n) for reason, n in sorted(reasons.items())],
    }


def _ages(pending: Any, others: Any, now: Any) -> Gauges:
    oldest: dict[str, float] = {}
    kept = _kept({row["capability"] for row in pending})
    for row in pending:
        if row["since"] is not None:
            name = kept.get(row["capability"], OTHER)
            oldest[name] = max(oldest.get(name, 0.0), (now - row["since"]).total_seconds())
    asked = [row["since"] for row in others if row["state"] == "waiting" and row["reason"] in PEOPLE]
    return {
        "minions_oldest_pending_seconds": [({"capability": name}, age) for name, age in sorted(oldest.items())],
        "minions_oldest_approval_seconds": [({}, max(0.0, (now - min(asked)).total_seconds()) if asked else 0.0)],
    }


def _workers(rows: Any) -> Gauges:
    kept = _kept({row["capability"] for row in rows})
    gauges: Gauges = {}
    for metric in ("workers", "slots", "busy"):
        samples: dict[str, float] = {}
        for row in rows:
            _count(samples, kept.get(row["capability"], OTHER), row, metric)
        name = "minions_workers" if metric == "workers" else f"minions_worker_{metric}"
        gauges[name] = [({"capability": capability}, n) for capability, n in sorted(samples.items())]
    return gauges


def _count(sums: dict[Any, float], key: Any, row: RowMapping, what: str = "tasks") -> None:
    sums[key] = sums.get(key, 0) + int(row[what])


def _kept(names: set[str]) -> dict[str, str]:
    """Return the capabilities that have separate samples."""
    return {name: name for name in sorted(names)[:MOST_CAPABILITIES]}


def _broker(settings: Settings) -> Gauges:
    retry: Any = Retry(NoBackoff(), 0)
    began = time.monotonic()
    try:
        with redis.Redis.from_url(
            settings.require_redis_url(), socket_timeout=2.0, socket_connect_timeout=2.0, retry=retry
        ) as broker:
            memory: Any = broker.info("memory")
    except (redis.RedisError, OSError, MinionError):
        return {"minions_redis_up": [({}, 0)]}
    return {
        "minions_redis_up": [({}, 1)],
        "minions_redis_ping_seconds": [({}, time.monotonic() - began)],
        "minions_redis_memory_bytes": [({}, float(memory["used_memory"]))],
    }
