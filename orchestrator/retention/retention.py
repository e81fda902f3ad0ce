"""Retention: tasks that ended long enough ago are deleted, whole trees at a time, in small batches.

A tree is deleted when its root's outcome is older than the retention of the root's state and all tasks below have
ended. It is kept while it reserves something in a standing budget: what a lost call reserved is first counted as spent.
A replay is deleted after its original, so that an original is known to be replayed as long as it exists. Ended work is
counted for the statistics before it is deleted, and exported as traces unless that takes a day longer.

Trees are found by walking the index on state and id, whose order is that of creation, up to the first id that is too
young. A walk reads old rows that are kept (mostly sub-tasks of kept trees), and no young ones, however many there are.
An index on the time of the end would not work: the pages of deleted rows are filled with new ones, so its block ranges
(BRIN) soon cover all times.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.dialects.postgresql import UUID as PgUUID
from sqlalchemy.exc import DBAPIError

from orchestrator.observe.counting import catch_up
from orchestrator.retention.export import TaskExport
from orchestrator.tracing.state import EXPORTED, PATIENCE_DAYS, count_pruned
from shared.access.actors import Actor, orchestrator
from shared.audit import log as audit
from shared.contracts.key_order import in_order
from shared.settings import Settings
from shared.tasks.queries import first_id_at
from shared.tasks.states import FINAL, State

log = structlog.get_logger(__name__)

MAX_TREES = 500
MAX_TASKS = 2000
WINDOW = 5000
FIRST = UUID(int=0)
# No transaction should wait for a batch, so it gives up first. A large tree may take some seconds.
LIMITS = text(
    "SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '60s', true), "
    "set_config('jit', 'off', true)"
)
GAVE_UP = ("57014", "55P03")  # statement_timeout, lock_timeout


def _statement(sql: str) -> TextClause:
    """A statement about the trees `:roots`."""
    return text(sql).bindparams(bindparam("roots", type_=ARRAY(PgUUID)))


NOW = text("SELECT now()")
# The id at the end of the next stretch of the walk.
WINDOW_END = text(
    "SELECT task_id FROM (SELECT task_id FROM task_status WHERE state = :state AND task_id > :after "
    "AND task_id < :young ORDER BY task_id LIMIT :window) w ORDER BY task_id DESC LIMIT 1"
)
# What ended in an earlier transaction is counted. The end of a sub-task also ends a step of its parent.
COUNTED = "(SELECT COALESCE(max(counted_below), 0) FROM statistics_state)"
# Each table has its own bound: the planner does not derive one bound from the other.
CHOOSE = text(
    f"""
    SELECT s.task_id FROM task_status s JOIN tasks t ON t.id = s.task_id JOIN task_outcomes o ON o.task_id = s.task_id
        WHERE s.state = :state AND s.task_id > :after AND s.task_id <= :until
          AND t.id > :after AND t.id <= :until AND o.task_id > :after AND o.task_id <= :until
          AND t.parent_id IS NULL AND t.replay_of IS NULL AND o.finished_at < :before
          AND NOT EXISTS (SELECT 1 FROM tasks m JOIN task_status n ON n.task_id = m.id
                              WHERE m.root_id = t.id AND NOT n.state = ANY (:final))
          AND NOT EXISTS (SELECT 1 FROM standing_reservations r JOIN tasks c ON c.id = r.task_id
                              WHERE c.root_id = t.id)
          AND NOT EXISTS (SELECT 1 FROM tasks m JOIN task_outcomes e ON e.task_id = m.id
                              WHERE m.root_id = t.id AND e.ended_in >= {COUNTED})
          AND (o.finished_at < CAST(:before AS timestamptz) - interval '{PATIENCE_DAYS} day' OR NOT EXISTS (
              SELECT 1 FROM tasks m JOIN task_outcomes e ON e.task_id = m.id
                  WHERE m.root_id = t.id AND e.ended_in >= {EXPORTED}))
          AND NOT EXISTS (SELECT 1 FROM tasks m JOIN webhook_deliveries d ON d.task_id = m.id
                              WHERE m.root_id = t.id AND d.ended_in >= {COUNTED})
        ORDER BY s.task_id LIMIT :most FOR UPDATE OF s SKIP LOCKED
    """  # noqa: S608
).bindparams(bindparam("final", type_=ARRAY(TEXT)))
SIZES = _statement("SELECT root_id, count(*) AS size FROM tasks WHERE root_id = ANY (:roots) GROUP BY root_id")
RECORDS = _statement(
    """
    SELECT json_build_object('task', row_to_json(o),
            'steps', (SELECT json_agg(row_to_json(s) ORDER BY s.number) FROM steps s WHERE s.task_id = o.id),
            'executions', (SELECT json_agg(to_jsonb(e) - 'stream_key' || jsonb_build_object('worker', w.name)
                                               ORDER BY e.claim)
                               FROM executions e JOIN workers w ON w.id = e.worker_id WHERE e.task_id = o.id),
            'messages', (SELECT json_agg(row_to_json(m) ORDER BY m.id) FROM messages m WHERE m.task_id = o.id),
            'children', (SELECT json_agg(c.id ORDER BY c.id) FROM tasks c WHERE c.parent_id = o.id)) AS record,
            k.input_order, e.output_order
        FROM task_overview o JOIN tasks k ON k.id = o.id LEFT JOIN task_outcomes e ON e.task_id = o.id
        WHERE o.id IN (SELECT id FROM tasks WHERE root_id = ANY (:roots))
        ORDER BY o.root_id, o.id
    """
)
DELETE_OUTCOMES = _statement(
    "DELETE FROM task_outcomes o USING tasks t WHERE t.id = o.task_id AND t.root_id = ANY (:roots) "
    "RETURNING o.output_sha256"
)
DELETE_EVENTS_OF_PROGRAMS = _statement(
    "DELETE FROM security_events e USING tasks t "
    "WHERE t.id = e.task_id AND t.root_id = ANY (:roots) AND e.function_version_id IS NULL"
)
# Status, journal, executions, keys and other dependent rows are deleted with it.
DELETE_TASKS = _statement("DELETE FROM tasks WHERE root_id = ANY (:roots) RETURNING namespace, conversation_id")
# Locked before counting: a concurrent transaction that refers to a value holds its lock, or waits and stores it again.
LOCK_CONTENTS = text("SELECT sha256 FROM contents WHERE sha256 = ANY (:names) ORDER BY sha256 FOR UPDATE").bindparams(
    bindparam("names", type_=ARRAY(TEXT))
)
DELETE_CONTENTS = text(
    "DELETE FROM contents c WHERE c.sha256 = ANY (:names) "
    "AND NOT EXISTS (SELECT 1 FROM task_outcomes o WHERE o.output_sha256 = c.sha256)"
).bindparams(bindparam("names", type_=ARRAY(TEXT)))
# A conversation is deleted with the last of its tasks.
DELETE_CONVERSATIONS = text(
    "DELETE FROM conversations c USING unnest(:namespaces, :names) AS g (namespace, id) "
    "WHERE c.namespace = g.namespace AND c.id = g.id AND NOT EXISTS ("
    "SELECT 1 FROM tasks t WHERE t.namespace = c.namespace AND t.conversation_id = c.id)"
).bindparams(bindparam("namespaces", type_=ARRAY(TEXT)), bindparam("names", type_=ARRAY(TEXT)))
DELETE_WORKERS = text(
    """
    DELETE FROM workers WHERE id IN (
        SELECT w.id FROM workers w WHERE w.status <> 'online' AND w.last_seen < :before
            AND NOT EXISTS (SELECT 1 FROM executions e WHERE e.worker_id = w.id)
            AND NOT EXISTS (SELECT 1 FROM task_status s WHERE s.worker_id = w.id)
            LIMIT 1000 FOR UPDATE SKIP LOCKED)
    """
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Deletions of one transaction, of one state."""

    state: State
    trees: int
    tasks: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the walk: its end (None: the walk is complete), and its deletions."""

    until: UUID | None
    trees: int = 0
    tasks: int = 0


def retentions(settings: Settings) -> dict[State, timedelta]:
    """Retention of each final state. States that are kept indefinitely are left out."""
    days = {
        State.SUCCEEDED: settings.retention_succeeded,
        State.FAILED: settings.retention_failed,
        State.CANCELLED: settings.retention_cancelled,
        State.EXPIRED: settings.retention_expired,
    }
    return {state: timedelta(days=number) for state, number in days.items() if number}


def prune(engine: Engine, settings: Settings, *, dry_run: bool = False, actor: Actor | None = None) -> Iterator[Batch]:
    """Delete tasks older than their retention, one batch per iteration. Several processes may run it at once.

    Args:
        dry_run: delete nothing, only count.
        actor: who deletes them, for the audit log; by default an orchestrator.

    Raises:
        NotConfigured: the folder for the export does not exist.
        OSError: the export cannot be written; nothing of that batch is deleted.
    """
    export = TaskExport(settings.retention_export) if settings.retention_export else None
    kept = retentions(settings)
    if kept:
        catch_up(engine)
    with engine.connect() as connection:
        now: datetime = connection.execute(NOW).scalar_one()
    for state, age in kept.items():
        reached: UUID | None = FIRST
        while reached is not None:
            stretch = _walk(engine, state, now - age, reached, export, None if dry_run else actor or orchestrator())
            reached = stretch.until
            if stretch.tasks:
                yield Batch(state, stretch.trees, stretch.tasks)
    if kept and not dry_run:
        with engine.begin() as connection:
            connection.execute(DELETE_WORKERS, {"before": now - max(kept.values())})


def _walk(
    engine: Engine, state: State, before: datetime, after: UUID, export: TaskExport | None, actor: Actor | None
) -> _Stretch:
    """Process the next stretch of the walk and the first of its trees in one transaction.

    Args:
        actor: who deletes them; None deletes nothing.
    """
    with engine.begin() as connection:
        connection.execute(LIMITS)
        walk: dict[str, Any] = {"state": state, "after": after, "young": first_id_at(before), "window": WINDOW}
        until: UUID | None = connection.scalar(WINDOW_END, walk)
        if until is None:
            return _Stretch(None)
        values = {**walk, "until": until, "before": before, "final": sorted(FINAL), "most": MAX_TREES}
        found = list(connection.scalars(CHOOSE, values))
        if not found:
            return _Stretch(until)
        trees, tasks = first_trees(connection, found)
        # If more was found than is taken, the walk continues after the last tree taken.
        until = trees[-1] if len(trees) < len(found) or len(found) == MAX_TREES else until
        if actor is None:
            return _Stretch(until, len(trees), tasks)
        if delete_trees(connection, trees, export):
            target = f"{state} before {before.isoformat(timespec='seconds')}"
            facts = {"trees": len(trees), "tasks": tasks, "first": trees[0], "last": trees[-1]}
            audit.record(connection, actor, "task.prune", target, namespace=None, after=facts)
            return _Stretch(until, len(trees), tasks)
        return _Stretch(until)


def first_trees(connection: Connection, roots: list[UUID]) -> tuple[list[UUID], int]:
    """Return as many trees as fill a batch, at least one; and the number of their tasks."""
    if not roots:
        return [], 0
    sizes: dict[UUID, int] = {row.root_id: row.size for row in connection.execute(SIZES, {"roots": roots})}
    taken, tasks = roots[:1], sizes[roots[0]]
    for root in roots[1:]:
        if tasks + sizes[root] > MAX_TASKS:
            break
        taken.append(root)
        tasks += sizes[root]
    return taken, tasks


def delete_trees(connection: Connection, roots: list[UUID], export: TaskExport | None) -> bool:
    """Export trees and delete them; return False if that took too long, or another transaction held a lock."""
    try:
        with connection.begin_nested():
            if export is not None:
                export.append(_records(connection, roots))
            count_pruned(connection, roots)
            names = sorted({name for name in connection.scalars(DELETE_OUTCOMES, {"roots": roots}) if name})
            connection.execute(DELETE_EVENTS_OF_PROGRAMS, {"roots": roots})
            talks = {
                (talk.namespace, talk.conversation_id) for talk in connection.execute(DELETE_TASKS, {"roots": roots})
            }
            _delete_contents(connection, names)
            _delete_conversations(connection, sorted(talk for talk in talks if talk[1] is not None))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in GAVE_UP:
            raise
        log.warning("batch_given_up", first=str(roots[0]), trees=len(roots), reason=str(error.orig)[:300])
        return False
    return True


def _records(connection: Connection, roots: list[UUID]) -> Iterator[str]:
    """The trees' tasks as JSON texts, read while they are written."""
    streamed = {"stream_results": True, "yield_per": 100}
    for row in connection.execute(RECORDS, {"roots": roots}, execution_options=streamed):
        record = row.record
        task = {**record["task"], "input_order": row.input_order, "output_order": row.output_order}
        steps = [in_order(step, "input", "output") for step in record["steps"] or []]
        kept = {**record, "task": in_order(task, "input", "output"), "steps": steps or None}
        yield json.dumps(kept, ensure_ascii=False)


def _delete_contents(connection: Connection, names: list[str]) -> None:
    """Delete large outputs that no outcome refers to any more."""
    if names:
        connection.execute(LOCK_CONTENTS, {"names": names})
        connection.execute(DELETE_CONTENTS, {"names": names})


def _delete_conversations(connection: Connection, talks: list[tuple[str, str]]) -> None:
    if talks:
        namespaces, names = zip(*talks, strict=True)
        connection.execute(DELETE_CONVERSATIONS, {"namespaces": list(namespaces), "names": list(names)})
