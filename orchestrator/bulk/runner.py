"""The bulk runner: works off the acts on many tasks, each at its rate.

One orchestrator leads and the others wait, which saves work. The rows ensure that each task is acted on once: an act on
a task is one transaction that locks the row of the bulk act, does the act, and advances the cursor. A stop waits for
that lock, so no task is acted on after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from orchestrator import task_acts
from orchestrator.bulk.store import ACTORS, filter_of
from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop
from shared.access.actors import Actor, orchestrator
from shared.audit import log as audit
from shared.database.connections import autocommit, is_transient, reason
from shared.errors import MinionError, Unavailable
from shared.settings import Settings
from shared.tasks import queries
from shared.tasks.queries import TaskFilter

log = structlog.get_logger(__name__)

SECONDS = 0.5
BATCH = 100
MOST_FAILURES = 20
"""Failures that a row keeps; the rest are counted."""

# If the clock was set back, an act must not wait until it is as late again.
HEAL = text(
    "UPDATE bulk_acts SET next_at = now() "
    "WHERE state = 'running' AND next_at > now() + interval '10 s' + interval '1 s' / rate"
)
# As many tasks as a second has may be acted on at once. An act of a user without a key ends when an administrator ends
# a login of the user; a logout does not end it.
RUNNING = text(
    """
    SELECT b.id, b.act, b.chosen, b.options, b.maker, b.cursor,
           LEAST(GREATEST(floor((1 - GREATEST(extract(epoch FROM b.next_at - now()), 0)) * b.rate),
                          (b.next_at <= now())::int), :batch)::int AS due,
           CASE WHEN k.revoked_at IS NOT NULL OR k.expires_at <= now() THEN 'its key is no longer valid'
                WHEN b.key_id IS NULL AND EXISTS (
                    SELECT FROM login_sessions s
                        WHERE s.subject = b.maker->'key'->>'subject' AND s.ended_at >= b.created_at
                          AND s.ended_by <> b.maker->'key'->>'record') THEN 'a login of its user was ended' END AS over
        FROM bulk_acts b LEFT JOIN api_keys k ON k.id = b.key_id WHERE b.state = 'running' ORDER BY b.id
    """
)
TAKE = text(
    "SELECT 1 FROM bulk_acts WHERE id = :id AND state = 'running' AND (cursor IS NULL OR cursor < :task) FOR UPDATE"
)
ADVANCE = text(
    f"""
    UPDATE bulk_acts SET cursor = :task, done = done + (:outcome = 'done')::int,
            failed = failed + (:outcome = 'failed')::int, skipped = skipped + (:outcome = 'skipped')::int,
            next_at = GREATEST(next_at, clock_timestamp()) + interval '1 s' / rate,
            failures = CASE WHEN :outcome = 'failed' AND jsonb_array_length(failures) < {MOST_FAILURES}
                            THEN failures || :failure ELSE failures END
        WHERE id = :id
    """  # noqa: S608 - a constant
).bindparams(bindparam("failure", type_=JSONB))
PASS_OVER = text("UPDATE bulk_acts SET cursor = :until WHERE id = :id AND (cursor IS NULL OR cursor < :until)")
FINISH = text("UPDATE bulk_acts SET state = 'done', ended_at = now() WHERE id = :id AND state = 'running'")
END = text(
    "UPDATE bulk_acts SET state = 'stopped', stopped_by = :who, ended_at = now() WHERE id = :id AND state = 'running' "
    "RETURNING namespace, done, failed, skipped"
)


class BulkRunner(Loop):
    """Works off bulk acts."""

    name = "bulk_runner"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.statements = autocommit(engine)
        self.leadership = Leadership(settings, self.name)

    def run_once(self) -> float:
        """Act on the tasks that are due in each running act."""
        if not self.leadership.held():
            return SECONDS
        with self.statements.connect() as connection:
            connection.execute(HEAL)
            running = connection.execute(RUNNING, {"batch": BATCH}).mappings().all()
        failure: Exception | None = None
        for row in running:
            if self.stopping.is_set() or not self.leadership.held():
                break
            try:
                self._advance(row)
            except Exception as error:  # the other acts must not wait for this one
                log.warning("bulk_act_round_failed", bulk_act=str(row["id"]), reason=reason(error))
                failure = error
        if failure is not None:
            raise failure
        return 0.0 if any(row["due"] == BATCH for row in running) else SECONDS

    def close(self) -> None:
        """Give up the lead."""
        self.leadership.release()

    def _advance(self, row: RowMapping) -> None:
        if row["over"] is not None:
            self._end(row["id"], row["over"])
        elif row["due"] > 0:
            self._work_off(row)

    def _work_off(self, row: RowMapping) -> None:
        try:
            chosen, actor = filter_of(row["chosen"]), _actor(row["maker"])
        except ValueError:  # of Pydantic too
            log.exception("bulk_act_unreadable", bulk_act=str(row["id"]))
            self._end(row["id"], "this release cannot read it")
            return
        with self.statements.connect() as connection:
            stretch = queries.search_oldest(connection, chosen, limit=row["due"], after=row["cursor"])
        for task in stretch.found:
            if self.stopping.is_set():
                return
            with self.engine.begin() as connection:
                if not act_on(connection, row, task, chosen, actor):
                    return
        with self.engine.begin() as connection:
            if stretch.until is None:
                connection.execute(FINISH, {"id": row["id"]})
                log.info("bulk_act_done", bulk_act=str(row["id"]))
            else:
                connection.execute(PASS_OVER, {"id": row["id"], "until": stretch.until})

    def _end(self, id: UUID, why: str) -> None:
        """Stop an act that must not or cannot continue."""
        actor = orchestrator()
        with self.engine.begin() as connection:
            row = connection.execute(END, {"id": id, "who": f"{actor}: {why}"}).one_or_none()
            if row is not None:
                after = {"reason": why, "done": row.done, "failed": row.failed, "skipped": row.skipped}
                audit.record(connection, actor, "bulk_act.stop", id, namespace=row.namespace, after=after)


def act_on(connection: Connection, row: RowMapping, task: UUID, chosen: TaskFilter, actor: Actor) -> bool:
    """Act on one task, and advance the bulk act. Return False if it was stopped, or has passed the task.

    Raises:
        Unavailable: the audit log cannot be written.
        SQLAlchemyError: the database is temporarily away, full or busy.
    """
    if connection.execute(TAKE, {"id": row["id"], "task": task}).one_or_none() is None:
        return False
    outcome, failure = "skipped", None
    if queries.matches(connection, chosen, task):
        outcome, failure = _try(connection, row, task, actor)
    values = {"id": row["id"], "task": task, "outcome": outcome, "failure": failure}
    connection.execute(ADVANCE, values)
    return True


def _try(connection: Connection, row: RowMapping, task: UUID, actor: Actor) -> tuple[str, Any]:
    """Return the outcome, and why it failed. A refusal does not stop the others."""
    try:
        with connection.begin_nested():
            _act(connection, row, task, actor)
    except Unavailable:
        raise
    except MinionError as error:
        return "failed", {"task_id": str(task), "error": error.as_dict()}
    except DBAPIError as error:
        if is_transient(error):
            raise
        log.exception("bulk_act_failed_on_task", bulk_act=str(row["id"]), task=str(task))
        return "failed", {"task_id": str(task), "error": {"type": "internal", "message": reason(error)}}
    return "done", None


def _act(connection: Connection, row: RowMapping, task: UUID, actor: Actor) -> None:
    options, how = row["options"], {"bulk_act": row["id"]}
    match row["act"]:
        case "cancel":
            task_acts.cancel(connection, task, actor, reason=options["reason"], how=how)
        case "replay":
            task_acts.replay(
                connection,
                task,
                actor,
                pinned=options["pinned"],
                new_keys=options["new_keys"],
                more={"idempotency_key": f"bulk:{row['id']}:{task}"},
                how=how,
            )
        case "label":
            task_acts.label(connection, task, actor, labels=options["labels"], how=how)


def _actor(maker: Mapping[str, Any]) -> Actor:
    return ACTORS.validate_python({name: value for name, value in maker.items() if name != "identity"})
