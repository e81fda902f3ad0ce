"""Erasure: the contents of a tenant or a conversation are deleted on request, and the audit log keeps that it was done.

Ended trees are deleted as retention deletes them, but with their messages, with the summaries of their conversations,
with the files that nothing else refers to, with what models remember of the subject, and without an export. Trees that
have not ended are left and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.retention.files import delete_unused, files_of
from orchestrator.retention.retention import FIRST, LIMITS, delete_trees, first_trees
from shared.access.actors import Actor
from shared.audit import log
from shared.errors import Unavailable
from shared.memories import store as memories
from shared.tasks.states import FINAL

WINDOW = 50_000
MAX_TREES = 500
LAST = UUID(int=2**128 - 1)
ROOTS = bindparam("roots", type_=ARRAY(PgUUID))

# Tasks of a tenant have no index: the walk reads a stretch of all tasks at a time.
WINDOW_END = text(
    "SELECT id FROM (SELECT id FROM tasks WHERE id > :after ORDER BY id LIMIT :window) w ORDER BY id DESC LIMIT 1"
)
CHOOSE = text(
    """
    SELECT t.id, EXISTS (SELECT 1 FROM tasks m JOIN task_status n ON n.task_id = m.id
                             WHERE m.root_id = t.id AND NOT n.state = ANY (:final))
              OR EXISTS (SELECT 1 FROM standing_reservations r JOIN tasks c ON c.id = r.task_id
                             WHERE c.root_id = t.id) AS living
        FROM tasks t JOIN task_status s ON s.task_id = t.id
        WHERE t.id > :after AND t.id <= :until AND t.namespace = :namespace AND t.parent_id IS NULL
          AND (CAST(:tenant AS text) IS NULL OR t.key = :tenant)
          AND (CAST(:conversation AS text) IS NULL OR t.conversation_id = :conversation
               -- An evaluation has what its task had.
               OR t.labels @> jsonb_build_object('evaluates_conversation', CAST(:conversation AS text)))
        ORDER BY t.id LIMIT :most FOR UPDATE OF s
    """
).bindparams(bindparam("final", type_=ARRAY(TEXT)))
# Messages of tasks that retention deleted name no task any more.
DELETE_MESSAGES = text(
    """
    DELETE FROM messages m
        USING (SELECT DISTINCT namespace, conversation_id FROM tasks WHERE root_id = ANY (:roots)) c
        WHERE m.namespace = c.namespace AND m.conversation_id = c.conversation_id
          AND (m.task_id IS NULL OR m.task_id IN (SELECT id FROM tasks WHERE root_id = ANY (:roots)))
    """
).bindparams(ROOTS)
RELEASE_FILES = text(
    """
    DELETE FROM conversation_files f
        USING (SELECT DISTINCT namespace, conversation_id FROM tasks WHERE root_id = ANY (:roots)) c
        WHERE f.namespace = c.namespace AND f.conversation_id = c.conversation_id AND NOT EXISTS (
            SELECT FROM messages m WHERE m.namespace = f.namespace AND m.conversation_id = f.conversation_id
                AND strpos(m.content::text, f.file_id) > 0)
    """
).bindparams(ROOTS)
DELETE_EARLIER_MESSAGES = text(
    "DELETE FROM messages WHERE namespace = :namespace AND conversation_id = :conversation AND task_id IS NULL"
)
DELETE_SUMMARIES = text(
    "DELETE FROM conversation_summaries s USING tasks t WHERE t.root_id = ANY (:roots) "
    "AND s.namespace = t.namespace AND s.conversation_id = t.conversation_id"
).bindparams(ROOTS)
# The number of a function's events counts towards its quarantine.
EMPTY_EVENTS = text(
    "UPDATE security_events SET detail = '{}' WHERE task_id IN (SELECT id FROM tasks WHERE root_id = ANY (:roots))"
).bindparams(ROOTS)
SCHEDULES = text(
    "SELECT name FROM schedules WHERE namespace = :namespace "
    "AND (CAST(:tenant AS text) IS NULL OR request->>'key' = :tenant) "
    "AND (CAST(:conversation AS text) IS NULL OR request->>'conversation_id' = :conversation) ORDER BY name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A tenant or a conversation, the contents of which are erased."""

    namespace: str
    tenant: str | None = None
    conversation: str | None = None

    def __str__(self) -> str:
        """The subject as the audit log names it."""
        return f"tenant {self.tenant}" if self.conversation is None else f"conversation {self.conversation}"

    def as_values(self) -> dict[str, Any]:
        """Return the parameters of the statements."""
        return {"namespace": self.namespace, "tenant": self.tenant, "conversation": self.conversation}


@dataclass(frozen=True, slots=True)
class Erased:
    """One stretch of an erasure.

    Attributes:
        trees: root tasks that were deleted with everything below them.
        tasks: all of these tasks.
        memories: stores of memory of the subject. That of an agent is no tenant's, and is left.
        left: root tasks that have not ended, or that reserve something in a standing budget.
        schedules: schedules whose stored requests are about the subject.
        next: where the next stretch begins; None: this was the last one.
    """

    trees: int
    tasks: int
    memories: int
    left: list[UUID]
    schedules: list[str]
    next: UUID | None


def erase(connection: Connection, subject: Subject, actor: Actor, *, after: UUID | None, dry_run: bool) -> Erased:
    """Erase one stretch of a subject's tasks, in the caller's transaction.

    Args:
        after: the `next` of the stretch before; None begins.
        dry_run: delete nothing, only count.

    Raises:
        Unavailable: another transaction holds one of the tasks.
    """
    connection.execute(LIMITS)
    begin = after or FIRST
    until = _end_of_stretch(connection, subject, begin)
    values = {**subject.as_values(), "after": begin, "until": until, "final": sorted(FINAL), "most": MAX_TREES}
    found = connection.execute(CHOOSE, values).all()
    ended, tasks = first_trees(connection, [row.id for row in found if not row.living])
    whole = len(found) < MAX_TREES and len(ended) == sum(not row.living for row in found)
    reached = until if whole else (ended[-1] if ended else found[-1].id)
    left = [row.id for row in found if row.living and row.id <= reached]
    remembered = memories.erase(connection, **subject.as_values(), dry_run=dry_run) if after is None else 0
    if not dry_run:
        _delete(connection, ended)
        connection.execute(DELETE_EARLIER_MESSAGES, subject.as_values())
    if not dry_run and (after is None or ended):
        facts = {"trees": len(ended), "tasks": tasks, "memories": remembered, "left": len(left)}
        log.record(connection, actor, "task.erase", str(subject), namespace=subject.namespace, after=facts)
    schedules = list(connection.scalars(SCHEDULES, subject.as_values()))
    return Erased(len(ended), tasks, remembered, left, schedules, None if reached == LAST else reached)


def _end_of_stretch(connection: Connection, subject: Subject, after: UUID) -> UUID:
    """Return the last id to look at; `LAST` if there are no tasks behind it."""
    if subject.conversation is not None:
        return LAST
    end: UUID | None = connection.scalar(WINDOW_END, {"after": after, "window": WINDOW})
    return end or LAST


def _delete(connection: Connection, roots: list[UUID]) -> None:
    if not roots:
        return
    attached = files_of(connection, roots)
    for statement in (DELETE_MESSAGES, RELEASE_FILES, DELETE_SUMMARIES, EMPTY_EVENTS):
        connection.execute(statement, {"roots": roots})
    if not delete_trees(connection, roots, None):
        raise Unavailable("Another transaction holds tasks that are to be erased. Nothing was erased. Try again.")
    delete_unused(connection, attached)
