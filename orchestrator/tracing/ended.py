"""Ended work, row by row: the statements that read what one range of transactions ended.

A finished step never changes. A failed one may be retried under the same number, as long as its task has not ended; so
it is read when its task has ended, together with the calls that were cut off. A sub-task's end may end a step of a task
that has ended before. Steps that a replay copied have ended elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Engine, text

from orchestrator.tracing.state import Range

Row = dict[str, Any]

MOST_ROWS = 500
MOST_ROWS_WITH_CONTENTS = 50
"""Each may have twice `MOST_CONTENT`."""
MOST_CONTENT = 256 << 10
"""Bytes of a step's input or output, as text, that are read to be exported; a larger one is left out."""

SETTINGS = text("SELECT set_config('jit', 'off', true), set_config('enable_seqscan', 'off', true)")


def _moment(column: str, name: str) -> str:
    """A time in microseconds since 1970. NULL: it is infinite. Workers write what their clocks say."""
    seconds = f"LEAST(GREATEST(extract(epoch FROM {column}), 0), 9e9)"
    return f"CASE WHEN isfinite({column}) THEN ({seconds} * 1e6)::bigint END AS {name}"


_TASK = f"""
    t.id AS task_id, t.root_id, t.parent_id, t.parent_step, t.namespace, t.agent_name, t.conversation_id, t.key,
    t.traceparent, {_moment("t.created_at", "created")}, v.number AS agent_version,
    COALESCE(s.capability, t.capability) AS capability
"""
_OF_TASK = """
    JOIN tasks t ON t.id = {row}.task_id JOIN task_status s ON s.task_id = t.id
    LEFT JOIN agent_versions v ON v.id = t.agent_version_id
"""
_RANGE = """
    {row}.ended_in >= :low AND {row}.ended_in < :high
    AND (CAST(:since AS timestamptz) IS NULL OR {row}.finished_at > :since)
"""
# The place after which a page begins: a row of the page before.
_PLACE = "({row}.ended_in, {row}.task_id, {number}) > (:ended_in, CAST(:task AS uuid), :number)"
_ORDER = "ORDER BY {row}.ended_in, {row}.task_id, {number} LIMIT :most"
_STEP = f"""
    p.number, p.kind, p.name, p.status, p.effect, p.claim, p.error, p.usage,
    {_moment("p.started_at", "began")}, {_moment("p.finished_at", "ended")},
    p.cost_microdollars, p.program, p.line,
    p.usage ? 'cached' AS cached, f.name AS function, f.number AS function_version,
    CASE WHEN p.kind = 'model_call' THEN p.output->'model' END AS answered_by,
    CASE WHEN p.kind = 'model_call' THEN p.output->'stop_reason' END AS stop_reason,
    CASE WHEN p.input ? 'approval' THEN 'approval' WHEN p.input->>'signal' IS NOT NULL THEN 'signal'
         ELSE 'timer' END AS waits_for,
    p.child_id, c.agent_name AS child_agent, COALESCE(d.capability, c.capability) AS child_capability
"""
_OF_STEP = """
    LEFT JOIN function_versions f ON f.id = p.function_version_id
    LEFT JOIN tasks c ON c.id = p.child_id LEFT JOIN task_status d ON d.task_id = c.id
"""
# As text: parsed, hostile values take many times as much memory, so one row is parsed at a time.
_CONTENTS = f"""
    , CASE WHEN octet_length(p.input::text) <= {MOST_CONTENT} THEN p.input::text END AS input,
    CASE WHEN octet_length(p.output::text) <= {MOST_CONTENT} THEN p.output::text END AS output
"""

CLAIMS = f"""
    SELECT e.ended_in, e.claim AS number, e.claim, e.outcome, e.error, e.cpu_seconds,
           {_moment("e.started_at", "began")}, {_moment("e.finished_at", "ended")},
           e.peak_memory_bytes, e.input_tokens, e.output_tokens, e.cost_microdollars, w.name AS worker, {_TASK}
        FROM executions e {_OF_TASK.format(row="e")} JOIN workers w ON w.id = e.worker_id
        WHERE {_RANGE.format(row="e")} AND {_PLACE.format(row="e", number="e.claim")}
        {_ORDER.format(row="e", number="e.claim")}
"""  # noqa: S608
STEPS = f"""
    SELECT p.ended_in, {_STEP}, {_TASK} {{contents}}
        FROM steps p {_OF_TASK.format(row="p")} {_OF_STEP}
        WHERE {_RANGE.format(row="p")} AND {_PLACE.format(row="p", number="p.number")} AND p.copied_from IS NULL
          AND (p.status = 'finished' OR EXISTS (
                  SELECT 1 FROM task_outcomes o WHERE o.task_id = p.task_id AND COALESCE(o.ended_in, 0) < p.ended_in))
        {_ORDER.format(row="p", number="p.number")}
"""  # noqa: S608
LEFT_STEPS = f"""
    SELECT o.ended_in, {_moment("o.finished_at", "task_ended")}, {_STEP}, {_TASK} {{contents}}
        FROM task_outcomes o JOIN steps p ON p.task_id = o.task_id {_OF_TASK.format(row="o")} {_OF_STEP}
        WHERE {_RANGE.format(row="o")} AND {_PLACE.format(row="o", number="p.number")} AND p.copied_from IS NULL
          AND (p.status = 'failed' AND COALESCE(p.ended_in, 0) <= o.ended_in
               OR p.status = 'started' AND p.kind <> 'subtask')
        {_ORDER.format(row="o", number="p.number")}
"""  # noqa: S608
TASKS = f"""
    SELECT o.ended_in, t.depth AS number, o.state, {_moment("o.finished_at", "ended")}, o.error, {_TASK},
           r.id AS replayed_id, r.root_id AS replayed_root_id, r.traceparent AS replayed_traceparent
        FROM task_outcomes o {_OF_TASK.format(row="o")} LEFT JOIN tasks r ON r.id = t.replay_of
        WHERE {_RANGE.format(row="o")} AND {_PLACE.format(row="o", number="t.depth")}
        {_ORDER.format(row="o", number="t.depth")}
"""  # noqa: S608
STATEMENTS = (("claim", CLAIMS), ("step", STEPS), ("step", LEFT_STEPS), ("task", TASKS))
FIRST = {"ended_in": 0, "task": "00000000-0000-0000-0000-000000000000", "number": -1}


def rows_of(engine: Engine, chosen: Range, *, contents: bool) -> Iterator[tuple[str, Row]]:
    """Yield the rows that a range of transactions ended, each with its kind: `claim`, `step` or `task`.

    Each page of rows is read in a short transaction, so the caller may take its time between two rows.

    Args:
        contents: read the inputs and outputs of steps too.
    """
    most = MOST_ROWS_WITH_CONTENTS if contents else MOST_ROWS
    for kind, sql in STATEMENTS:
        statement = text(sql.replace("{contents}", _CONTENTS if contents else ""))
        place: dict[str, Any] | None = FIRST
        while place is not None:
            values = {"low": chosen.low, "high": chosen.high, "since": chosen.since, "most": most, **place}
            with engine.begin() as connection:
                page = _read(connection, statement, values)
            yield from ((kind, row) for row in page)
            place = _after(page[-1]) if len(page) == most else None


def _read(connection: Connection, statement: Any, values: dict[str, Any]) -> list[Row]:
    connection.execute(SETTINGS)
    return [dict(row) for row in connection.execute(statement, values).mappings()]


def _after(row: Row) -> dict[str, Any]:
    return {"ended_in": row["ended_in"], "task": row["task_id"], "number": row["number"]}
