"""Reading the events of tasks, in order, for clients that follow them.

A task's events are numbered from 1 without gaps. The first (`task.accepted`) and the last (the end of the task) are not
stored: they are read from the task and its outcome. Stored events are completed from the steps' rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from shared.contracts.key_order import ordered
from shared.tasks.states import FINAL

ACCEPTED = "task.accepted"
ENDINGS = frozenset(f"task.{state}" for state in FINAL)
LARGEST_STEP_BYTES = 16 << 10
MAX_AT_ONCE = 20

EVENTS = text(
    """
    SELECT a.n, t.id IS NULL AS gone, o.task_id IS NOT NULL AS ended, l.claim, l.stream_key,
        e.number, e.type, e.data, e.key_order, e.created_at
    FROM unnest(:tasks, :afters) WITH ORDINALITY AS a (task_id, after, n)
    LEFT JOIN tasks t ON t.id = a.task_id
    LEFT JOIN task_outcomes o ON o.task_id = a.task_id
    LEFT JOIN LATERAL (
        SELECT claim, stream_key FROM executions WHERE task_id = a.task_id ORDER BY claim DESC LIMIT 1
    ) l ON true
    LEFT JOIN LATERAL (
        SELECT 1 AS number, 'task.accepted' AS type, t.created_at, jsonb_strip_nulls(jsonb_build_object(
                'agent', t.agent_name, 'parent_id', t.parent_id, 'replay_of', t.replay_of)) AS data,
                NULL::jsonb AS key_order
            WHERE t.id IS NOT NULL AND a.after < 1
        UNION ALL
        (SELECT v.number, v.type, v.created_at, v.data || CASE
                WHEN v.type = 'step.started' AND s.kind = 'wait' THEN
                    CASE WHEN octet_length(s.input::text) <= :largest_step THEN jsonb_build_object('input', s.input)
                         ELSE '{"input_omitted": true}' END
                WHEN v.type = 'step.finished' THEN
                    CASE WHEN c.output_sha256 IS NULL
                              AND COALESCE(octet_length(COALESCE(s.output, c.output)::text), 0) <= :largest_step
                         THEN jsonb_build_object('output', COALESCE(s.output, c.output))
                         ELSE '{"output_omitted": true}' END || jsonb_strip_nulls(jsonb_build_object(
                        'usage', CASE WHEN s.kind = 'model_call' THEN s.usage END,
                        'cost_microdollars', NULLIF(s.cost_microdollars, 0)))
                WHEN v.type = 'step.failed' AND c.error IS NOT NULL THEN jsonb_build_object('error', jsonb_build_object(
                    'type', c.error->'type', 'message', left(c.error->>'message', 2000)))
                WHEN x.error IS NOT NULL THEN jsonb_build_object('error', jsonb_build_object(
                    'type', x.error->'type', 'message', left(x.error->>'message', 2000)))
                ELSE '{}' END AS data,
                CASE WHEN v.type = 'step.started' THEN s.input_order
                     WHEN v.type = 'step.finished' AND s.output IS NULL THEN c.output_order
                     WHEN v.type = 'step.finished' THEN s.output_order END AS key_order
            FROM task_events v
            LEFT JOIN steps s ON s.task_id = v.task_id AND s.number = (v.data->>'step')::integer
            LEFT JOIN task_outcomes c ON c.task_id = s.child_id
            LEFT JOIN executions x ON v.type IN ('task.pending', 'task.waiting') AND x.task_id = v.task_id
                AND x.claim = (v.data->>'claim')::integer AND x.outcome IN ('retried', 'lost')
            WHERE v.task_id = a.task_id AND v.number > a.after ORDER BY v.number LIMIT :most)
        UNION ALL
        SELECT z.number, 'task.' || o.state, o.finished_at, CASE
                WHEN o.output_sha256 IS NOT NULL THEN '{"output_omitted": true}'
                WHEN o.state = 'succeeded' THEN jsonb_build_object('output', o.output) ELSE '{}' END
                || CASE WHEN o.error IS NULL THEN '{}' ELSE jsonb_build_object('error', o.error) END, o.output_order
            FROM (SELECT 1 + COALESCE(max(number), 1) AS number FROM task_events WHERE task_id = o.task_id) z
            WHERE o.task_id IS NOT NULL AND z.number > a.after
    ) e ON true
    ORDER BY a.n, e.number
    """
).bindparams(
    bindparam("tasks", type_=ARRAY(PgUUID)),
    bindparam("afters", type_=ARRAY(INTEGER)),
    bindparam("largest_step", LARGEST_STEP_BYTES),
    bindparam("most", MAX_AT_ONCE),
)
LAST = text(
    "SELECT (SELECT COALESCE(max(number), 1) FROM task_events WHERE task_id = t.id) "
    "+ (o.task_id IS NOT NULL)::integer AS number, o.task_id IS NOT NULL AS ended "
    "FROM tasks t LEFT JOIN task_outcomes o ON o.task_id = t.id WHERE t.id = :task"
)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event of a task. `number` is None for streamed text, which is not stored."""

    number: int | None
    type: str
    data: dict[str, Any]

    @property
    def final(self) -> bool:
        """True if no event comes after this one."""
        return self.type in ENDINGS


@dataclass(frozen=True, slots=True)
class News:
    """The events after a given number.

    Attributes:
        complete: there are no more at the moment.
        over: there will never be more.
        keys: the secret of the latest claim, for the text that its worker streams; none if a release before 0.3 began
            that claim.
    """

    events: list[StreamEvent]
    complete: bool
    over: bool
    keys: dict[int, bytes]


def read_news(connection: Connection, cursors: Sequence[tuple[UUID, int]]) -> list[News]:
    """Return the events after each task's number, about twenty at most; one statement for all tasks.

    A step's output of more than 16 KB and a task's of more than 64 KB are left out (`output_omitted`).
    """
    tasks, afters = [task for task, _ in cursors], [after for _, after in cursors]
    rows = connection.execute(EVENTS, {"tasks": tasks, "afters": afters})
    grouped = {n: list(group) for n, group in groupby(rows, key=lambda row: row.n)}
    return [_news(grouped[n], after) for n, after in enumerate(afters, 1)]


def last_event(connection: Connection, task: UUID) -> tuple[int, bool] | None:
    """Return the number of a task's latest event, and whether it is the last one. None: there is no such task."""
    row = connection.execute(LAST, {"task": task}).one_or_none()
    return (row.number, row.ended) if row else None


def _news(rows: Sequence[Any], after: int) -> News:
    """Return the events up to the first gap: beyond it, more are stored than one read returns."""
    events: list[StreamEvent] = []
    for row in rows:
        if row.number == after + len(events) + 1:
            events.append(
                StreamEvent(row.number, row.type, {"at": _text(row.created_at), **ordered(row.data, row.key_order)})
            )
    complete = len(events) == len([row for row in rows if row.number is not None])
    return News(events, complete, over=rows[0].gone or (rows[0].ended and complete), keys=_keys(rows[0]))


def _keys(row: Any) -> dict[int, bytes]:
    return {row.claim: row.stream_key} if row.stream_key else {}


def _text(moment: datetime) -> str:
    return moment.isoformat()
