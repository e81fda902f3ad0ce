"""How far ended work was exported, in the order of commits; and what that means for retention and metrics.

Ends have the numbers of their transactions: see `shared/tasks/sql/ends.sql`. All transactions below the oldest one that
still runs have ended, so everything below it can be exported, and nothing that commits late is missed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from shared.database.connections import autocommit

log = structlog.get_logger(__name__)

MARKED = ("steps", "executions", "task_outcomes")
MOST_ENDS = 500
"""Rows of one table in a range, but for one transaction that has more."""
OFF_DAYS = 7
"""How long no orchestrator may have exported for the next one to continue; after that, it begins at the present."""
PATIENCE_DAYS = 1
"""How much longer retention keeps a tree that is not exported."""
NOBODY_HOURS = 1
"""Retention does not wait for an export that no orchestrator has run for so long."""

STATE = text(
    f"""
    SELECT low, since, horizon, next, first, nth, seen_at < now() - interval '1 minute' AS unseen,
           low > next OR COALESCE((SELECT cluster <> minion_cluster() FROM tracing_state), false) AS elsewhere,
           seen_at < now() - interval '{OFF_DAYS} days' AS off
        FROM minion_traces_due(:most)
    """  # noqa: S608
)
BEGIN = text(
    """
    INSERT INTO tracing_state AS s (exported_below, cluster)
        VALUES (pg_snapshot_xmin(pg_current_snapshot())::text::bigint, minion_cluster())
        ON CONFLICT (id) DO UPDATE SET exported_below = EXCLUDED.exported_below, exported_at = now(), seen_at = now(),
                                       cluster = EXCLUDED.cluster
            WHERE s.seen_at < now() - :off * interval '1 day'
    """
)
ELSEWHERE = text(
    "UPDATE tracing_state SET exported_below = 0, since = exported_at, cluster = minion_cluster(), seen_at = now() "
    "WHERE exported_below = :low"
)
SEEN = text("UPDATE tracing_state SET seen_at = now()")
MOVE = text(
    """
    UPDATE tracing_state SET exported_below = :high, exported_at = now(), seen_at = now(),
                             cluster = minion_cluster(), exported = exported + :exported, refused = refused + :refused
        WHERE exported_below = :low
    """
)
RUNS = f"seen_at > now() - interval '{NOBODY_HOURS} hour'"
"""Whether an orchestrator exports. An SQL expression."""
# The oldest end that is not exported, about: the first in the order of transactions. Workers write what their clocks
# say.
METRICS = text(
    f"""
    SELECT exported, refused, pruned, CASE WHEN {RUNS} THEN GREATEST(0, extract(epoch FROM now() - LEAST({
        ", ".join(
            "(SELECT CASE WHEN isfinite(finished_at) THEN finished_at END "
            f"FROM {table} WHERE ended_in >= exported_below ORDER BY ended_in LIMIT 1)"
            for table in MARKED
        )
    }))) END::float8 AS age
        FROM tracing_state
    """  # noqa: S608
)
KEPT = text("SELECT id FROM tasks WHERE id = ANY (:tasks)").bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))

EXPORTED = f"(SELECT COALESCE(min(exported_below), 9223372036854775807) FROM tracing_state WHERE {RUNS})"  # noqa: S608
"""What ended in an earlier transaction is exported; everything, if no orchestrator exports. An SQL expression."""
PRUNED = text(
    f"""
    WITH lost AS (
        SELECT count(*) AS spans FROM tasks t CROSS JOIN LATERAL (
            {
        " UNION ALL ".join(
            f"SELECT 1 FROM {table} e WHERE e.task_id = t.id AND e.ended_in >= {EXPORTED}" for table in MARKED
        )
    }) AS e
            WHERE t.root_id = ANY (:roots) AND EXISTS (SELECT 1 FROM tracing_state WHERE {RUNS}))
    UPDATE tracing_state SET pruned = pruned + lost.spans FROM lost WHERE lost.spans > 0 RETURNING lost.spans
    """  # noqa: S608
).bindparams(bindparam("roots", type_=ARRAY(PgUUID)))


@dataclass(frozen=True, slots=True)
class Range:
    """Transactions whose ends are exported next: from `low` on, below `high`.

    Attributes:
        since: only what ended later; None: everything.
        is_last: nothing after it could be exported when it was chosen.
    """

    low: int
    high: int
    since: datetime | None = None
    is_last: bool = False


def next_range(engine: Engine, *, continues: bool = False) -> Range | None:
    """Return what is to be exported next; None if there is nothing. The first call begins at the present.

    Args:
        continues: the caller has called it before, so that a long pause is a clock that jumped.
    """
    with autocommit(engine).connect() as connection:
        state = connection.execute(STATE, {"most": MOST_ENDS}).mappings().one_or_none()
        if state is None or (state["off"] and not continues):
            connection.execute(BEGIN, {"off": OFF_DAYS})
            log.info("tracing_begins", off_for_days=state and OFF_DAYS)
            return None
        if state["elsewhere"]:
            # A dump was restored into another server, whose transactions have other numbers.
            connection.execute(ELSEWHERE, {"low": state["low"]})
            log.warning("tracing_restored", exported_below=state["low"], transaction=state["next"])
            return None
        if state["first"] is not None:
            return Range(state["low"], _end(state), state["since"], is_last=state["nth"] is None)
        if state["unseen"]:
            connection.execute(MOVE, {"low": state["low"], "high": state["horizon"], "exported": 0, "refused": 0})
        return None


def _end(state: RowMapping) -> int:
    """Return the end of the range. All ends of one transaction are in the same range, however many they are."""
    nth, low, horizon = state["nth"], int(state["low"]), int(state["horizon"])
    return horizon if nth is None else max(int(nth), low + 1)


def move(engine: Engine, done: Range, *, exported: int, refused: int) -> None:
    """Record that a range was exported, unless another orchestrator has done so."""
    values = {"low": done.low, "high": done.high, "exported": exported, "refused": refused}
    with autocommit(engine).connect() as connection:
        connection.execute(MOVE, values)


def kept_tasks(engine: Engine, tasks: Collection[UUID]) -> set[UUID]:
    """Return those of the tasks that were not deleted in the meantime."""
    with autocommit(engine).connect() as connection:
        return set(connection.scalars(KEPT, {"tasks": list(tasks)}))


def say_that_it_runs(engine: Engine) -> None:
    """Let retention wait, although nothing can be exported now."""
    with autocommit(engine).connect() as connection:
        connection.execute(SEEN)


def count_pruned(connection: Connection, roots: Sequence[UUID]) -> None:
    """Count the spans of trees that are deleted before they were exported."""
    spans: int | None = connection.scalar(PRUNED, {"roots": list(roots)})
    if spans:
        log.warning("spans_deleted_unexported", spans=spans)


def read_metrics(connection: Connection) -> dict[str, Any] | None:
    """Return `exported`, `refused` and `pruned`, and the `age` of the oldest end that is not exported, in seconds.

    The age is None while no orchestrator exports. The whole is None if nothing was ever exported here.
    """
    row = connection.execute(METRICS).mappings().one_or_none()
    return None if row is None else dict(row)
