"""Ended work, grouped for the statistics: the statements that read it.

Each reads the rows whose transactions are in a range: see `shared/tasks/sql/ends.sql`. The hour is that of the end. The
clock of a worker or of the database's host may be wrong, so no hour is before the task or in the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION

from orchestrator.observe.histogram import BOUNDS
from shared.tasks.trials import FORMAT

RANGE = (
    "{row}.ended_in >= :low AND {row}.ended_in < :high "
    "AND (CAST(:since AS timestamptz) IS NULL OR {row}.{moment} > :since)"
)
HOUR = "date_trunc('hour', LEAST(GREATEST({end}, t.created_at), now()), 'UTC') AS bucket"
TRIALS = " (trial)"
"""Follows the name of an agent whose tasks were trials: they are none of its production."""
AGENT = f"COALESCE(t.agent_name, '') || CASE t.journal_format WHEN {FORMAT} THEN '{TRIALS}' ELSE '' END"
OWNER = f"""
    t.namespace, {AGENT} AS agent,
    COALESCE(v.number, 0) AS version, COALESCE(s.capability, t.capability, '') AS capability,
    COALESCE(t.key, '') AS tenant
"""
OF_TASK = """
    JOIN tasks t ON t.id = {row}.task_id JOIN task_status s ON s.task_id = t.id
    LEFT JOIN agent_versions v ON v.id = t.agent_version_id
"""
LONGEST_SECONDS = "1e9"
MOST_MICRODOLLARS = 10**12
"""Of a step: no sum overflows or decreases, whatever a worker wrote."""
STEP = "task_id, kind, name, status, usage, cost_microdollars, function_version_id, started_at, finished_at"


def _statement(sql: str) -> TextClause:
    return text(sql).bindparams(bindparam("bounds", list(BOUNDS), type_=ARRAY(DOUBLE_PRECISION)))


def _seconds(begin: str, end: str) -> str:
    """A duration: none is negative, or longer than a worker's wrong clock should make it."""
    measured = f"LEAST(GREATEST(extract(epoch FROM {end} - {begin}), 0), {LONGEST_SECONDS})::float8"
    return f"CASE WHEN isfinite({begin}) AND isfinite({end}) THEN {measured} ELSE 0 END"


def _cost(step: str) -> str:
    return f"LEAST(GREATEST({step}.cost_microdollars, 0), {MOST_MICRODOLLARS})"


TASKS = _statement(f"""
    SELECT {HOUR.format(end="o.finished_at")}, {OWNER}, o.state AS outcome,
           CASE WHEN o.state = 'failed' AND t.journal_format <> {FORMAT}
                THEN COALESCE(o.error_fingerprint, '') END AS fingerprint,
           CASE WHEN o.state = 'failed' AND t.journal_format <> {FORMAT}
                THEN COALESCE(o.error->>'type', '') END AS error,
           width_bucket(d.run, :bounds) AS run, count(*) AS count, sum(d.run) AS run_seconds
        FROM task_outcomes o {OF_TASK.format(row="o")}
        CROSS JOIN LATERAL (SELECT {_seconds("t.created_at", "o.finished_at")} AS run) d
        WHERE {RANGE.format(row="o", moment="finished_at")}
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
""")  # noqa: S608
# A task may start when it was accepted, or later: when it is due, or continues. A claim reads back the steps of earlier
# claims. One that was cut off has read those before its own last step; if it has no step, none is counted.
EXECUTIONS = _statement(f"""
    SELECT {HOUR.format(end="e.finished_at")}, {OWNER}, e.outcome,
           width_bucket(d.run, :bounds) AS run, width_bucket(d.wait, :bounds) AS wait, count(*) AS count,
           sum(d.run) AS run_seconds, sum(d.wait) AS wait_seconds,
           sum(r.microdollars)::bigint AS saved_microdollars, sum(r.steps)::bigint AS saved_steps
        FROM executions e {OF_TASK.format(row="e")}
        CROSS JOIN LATERAL (
            SELECT COALESCE((
                SELECT p.created_at FROM task_events p
                    WHERE p.task_id = e.task_id AND p.type = 'task.pending' AND p.created_at <= e.started_at
                    ORDER BY p.number DESC LIMIT 1), t.created_at) AS since) due
        CROSS JOIN LATERAL (
            SELECT {_seconds("e.started_at", "e.finished_at")} AS run,
                   {_seconds("due.since", "e.started_at")} AS wait) d
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum({_cost("c")}), 0) AS microdollars,
                   count(*) AS steps
                FROM steps c
                WHERE e.claim > 1 AND c.task_id = e.task_id AND c.claim < e.claim AND c.status = 'finished'
                  AND c.copied_from IS NULL
                  AND (e.outcome IN ('succeeded', 'failed', 'retried', 'suspended') OR c.number < (
                        SELECT max(l.number) FROM steps l WHERE l.task_id = e.task_id AND l.claim = e.claim))) r
        WHERE {RANGE.format(row="e", moment="finished_at")}
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
""")  # noqa: S608
STEPS = _statement(f"""
    SELECT {HOUR.format(end="p.finished_at")}, {OWNER}, p.status AS outcome, p.kind AS step,
           CASE WHEN p.kind = 'wait' THEN '' ELSE p.name END AS name, COALESCE(f.name, '') AS function,
           width_bucket(d.run, :bounds) AS run, count(*) AS count, sum(d.run) AS run_seconds,
           sum({_cost("p")})::bigint AS microdollars,
           sum(minion_used(p.usage, 'input_tokens'))::bigint AS input_tokens,
           sum(minion_used(p.usage, 'output_tokens'))::bigint AS output_tokens,
           sum(minion_used(p.usage, 'cache_read_input_tokens'))::bigint AS cache_read_tokens,
           sum(minion_used(p.usage, 'cache_creation_input_tokens'))::bigint AS cache_write_tokens,
           count(*) FILTER (WHERE p.usage ? 'cached') AS cached
        FROM (SELECT {STEP} FROM steps x WHERE {RANGE.format(row="x", moment="finished_at")}
              UNION ALL
              SELECT {STEP} FROM retried_steps x WHERE {RANGE.format(row="x", moment="finished_at")}) p
        {OF_TASK.format(row="p")} LEFT JOIN function_versions f ON f.id = p.function_version_id
        CROSS JOIN LATERAL (SELECT {_seconds("p.started_at", "p.finished_at")} AS run) d
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
""")  # noqa: S608
SECURITY = text(f"""
    SELECT date_trunc('hour', LEAST(x.created_at, now()), 'UTC') AS bucket,
           COALESCE(f.namespace, t.namespace) AS namespace, COALESCE(v.name, '') AS function,
           COALESCE(v.number, 0) AS version, x.kind AS outcome, count(*) AS count
        FROM security_events x LEFT JOIN function_versions v ON v.id = x.function_version_id
        LEFT JOIN functions f ON f.id = v.function_id
        LEFT JOIN tasks t ON t.id = x.task_id AND x.function_version_id IS NULL
        WHERE {RANGE.format(row="x", moment="created_at")} AND COALESCE(f.namespace, t.namespace) IS NOT NULL
        GROUP BY 1, 2, 3, 4, 5
""")  # noqa: S608
WEBHOOKS = text(f"""
    SELECT date_trunc('hour', LEAST(x.finished_at, now()), 'UTC') AS bucket, w.namespace, w.name, x.status AS outcome,
           count(*) AS count
        FROM webhook_deliveries x JOIN webhooks w ON w.id = x.webhook_id
        WHERE x.status <> 'pending' AND {RANGE.format(row="x", moment="finished_at")}
        GROUP BY 1, 2, 3, 4
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of ended work.

    Attributes:
        tables: those with marks, and their columns with the time of the end.
    """

    kind: str
    statement: TextClause
    tables: dict[str, str]


SOURCES = (
    Source("task", TASKS, {"task_outcomes": "finished_at"}),
    Source("execution", EXECUTIONS, {"executions": "finished_at"}),
    Source("step", STEPS, {"steps": "finished_at", "retried_steps": "finished_at"}),
    Source("security", SECURITY, {"security_events": "created_at"}),
    Source("webhook", WEBHOOKS, {"webhook_deliveries": "finished_at"}),
)
MARKED: dict[str, str] = {table: moment for source in SOURCES for table, moment in source.tables.items()}

Group = dict[str, Any]
