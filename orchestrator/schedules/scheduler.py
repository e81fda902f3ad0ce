"""The scheduler: submits tasks repeatedly, by cron expression or by interval.

One orchestrator leads and the others wait, which saves work. The rows ensure that no run is submitted twice: a run is
one transaction that locks the schedule, submits the task under an idempotency key with the time of the run, and
advances the schedule.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping, text
from sqlalchemy.exc import DBAPIError

from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop
from orchestrator.schedules import store
from orchestrator.schedules.timetable import due
from shared.contracts.key_order import ordered
from shared.database.connections import autocommit, is_transient
from shared.errors import MinionError
from shared.settings import Settings
from shared.tasks import submission

log = structlog.get_logger(__name__)

DUTY = "scheduler"
LONGEST_WAIT = 1.0
# Delay before an unreadable schedule is tried again (its time zone is unknown to this machine, for example).
SET_ASIDE = timedelta(minutes=5)
FAULT = "The schedule cannot be read; the orchestrator's log has the details. It is tried again in five minutes."

# PostgreSQL's clock decides, so that the orchestrators need not agree on the time.
DUE = text("SELECT id FROM schedules WHERE enabled AND next_at <= now() ORDER BY next_at LIMIT 1000")
TAKE = text(
    "SELECT id, namespace, name, cron, timezone, interval_seconds, missed, request, request_order, next_at, "
    "last_task_id, now() AS now FROM schedules WHERE id = :id AND enabled AND next_at <= now() FOR UPDATE SKIP LOCKED"
)
# Checking inputs may take longer than the usual idle limit of a transaction. The lock is on this schedule alone.
TAKE_TIME = text("SET LOCAL idle_in_transaction_session_timeout = '60s'")
MOVE_ON = text(
    "UPDATE schedules SET next_at = :next_at, last_at = COALESCE(:last_at, last_at), "
    "last_task_id = COALESCE(:last_task_id, last_task_id), "
    "last_error = CASE WHEN CAST(:last_at AS timestamptz) IS NULL THEN last_error ELSE :last_error END WHERE id = :id"
)
SET_BACK = text(
    "UPDATE schedules SET next_at = now() + :pause, last_error = :last_error WHERE id = :id AND next_at <= now()"
)
SECONDS_LEFT = text("SELECT extract(epoch FROM min(next_at) - clock_timestamp()) FROM schedules WHERE enabled")


class Scheduler(Loop):
    """Submits the runs that are due."""

    name = "scheduler"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.statements = autocommit(engine)
        self.leadership = Leadership(settings, DUTY)

    def run_once(self) -> float:
        """Process every schedule that is due."""
        if not self.leadership.held():
            return LONGEST_WAIT
        with self.statements.connect() as connection:
            ids = list(connection.scalars(DUE))
        for id in ids:
            if self.stopping.is_set() or not self.leadership.held():
                break
            self._run_due(id)
        with self.statements.connect() as connection:
            left = connection.scalar(SECONDS_LEFT)
        return LONGEST_WAIT if left is None else max(0.0, min(LONGEST_WAIT, float(left)))

    def close(self) -> None:
        """Give up the lead."""
        self.leadership.release()

    def _run_due(self, id: UUID) -> None:
        """Run one schedule; an unexpected error must not keep the others from running."""
        try:
            with self.engine.begin() as connection:
                run_due(connection, id)
        except Exception as error:
            if isinstance(error, DBAPIError) and is_transient(error):
                raise
            log.exception("schedule_set_aside", schedule=str(id))
            why = error.message if isinstance(error, MinionError) else FAULT
            with self.engine.begin() as connection:
                connection.execute(SET_BACK, {"id": id, "pause": SET_ASIDE, "last_error": why})


def run_due(connection: Connection, id: UUID) -> list[UUID]:
    """Submit the runs of a schedule that are due, and advance it. Return their tasks.

    A refusal is kept in `last_error`; the affected runs are not retried.
    """
    connection.execute(TAKE_TIME)
    schedule = connection.execute(TAKE, {"id": id}).mappings().one_or_none()
    if schedule is None:
        # Another orchestrator has locked it, or it was changed.
        return []
    timetable = store.timetable(
        schedule["cron"], schedule["timezone"], schedule["interval_seconds"], anchor=schedule["next_at"]
    )
    now_due = due(timetable, schedule["next_at"], schedule["now"], schedule["missed"])
    tasks, refusal = _submit(connection, schedule, now_due.runs)
    values = {
        "id": id,
        "next_at": now_due.next_at,
        "last_at": max(now_due.runs, default=None),
        "last_task_id": tasks[-1] if tasks else None,
        "last_error": refusal,
    }
    connection.execute(MOVE_ON, values)
    _log_runs(schedule, tasks, refusal)
    return tasks


def _submit(connection: Connection, schedule: RowMapping, runs: list[datetime]) -> tuple[list[UUID], str | None]:
    """Return the tasks, or the reason why there are none."""
    try:
        requests = [
            store.task_request(
                schedule["name"],
                ordered(schedule["request"], schedule["request_order"]),
                namespace=schedule["namespace"],
                idempotency_key=f"schedule:{schedule['id']}:{run.astimezone(UTC).isoformat()}",
            )
            for run in runs
        ]
        with connection.begin_nested():
            accepted = submission.submit_within(connection, requests, submitted_by=store.submitter(schedule["name"]))
    except MinionError as error:
        return [], error.message
    return [task.task_id for task in accepted], None


def _log_runs(schedule: RowMapping, tasks: list[UUID], refusal: str | None) -> None:
    about = {"schedule": schedule["name"], "namespace": schedule["namespace"]}
    if refusal is not None:
        log.warning("schedule_refused", **about, reason=refusal)
    elif tasks:
        log.info("scheduled", **about, tasks=len(tasks), last=str(tasks[-1]))
    else:
        log.info("runs_skipped", **about, since=schedule["next_at"].isoformat())
