"""Stored schedules: tasks that are submitted repeatedly."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.schedules.timetable import Cron, Every, Missed, Timetable
from shared.contracts.documents import Name
from shared.contracts.key_order import in_order, order_of
from shared.contracts.requests import TaskRequest
from shared.contracts.strict_model import Strict, faults_of
from shared.database.connections import autocommit
from shared.errors import Conflict, InvalidInput, NotFound
from shared.tasks import submission
from shared.tasks.queries import Page, page_of
from shared.tasks.records import NewTask

LABEL = "schedule"
# Fields that belong to one run, not to all of them.
NOT_SCHEDULED = ("idempotency_key", "run_at", "deadline", "traceparent", "namespace")
TEN_YEARS = 10 * 366 * 86_400

COLUMNS = (
    "name, namespace, cron, CASE WHEN cron IS NOT NULL THEN timezone END AS timezone, interval_seconds, missed, "
    "request, request_order, enabled, CASE WHEN enabled THEN next_at END AS next_at, last_at, last_task_id, "
    "last_error, created_at"
)
LIST = text(
    f"SELECT {COLUMNS} FROM schedules WHERE namespace = :namespace AND name > :after "  # noqa: S608
    "ORDER BY name LIMIT :most"
)
GET = text(f"SELECT {COLUMNS} FROM schedules WHERE namespace = :namespace AND name = :name")  # noqa: S608
LOCK = text("SELECT 1 FROM schedules WHERE namespace = :namespace AND name = :name FOR UPDATE")
INSERT = (
    "INSERT INTO schedules AS s (namespace, name, cron, timezone, interval_seconds, missed, request, "
    "request_order, enabled, next_at, submitter_keys) VALUES (:namespace, :name, :cron, :timezone, "
    ":interval_seconds, :missed, :request, :request_order, :enabled, :next_at, "
    "array_remove(ARRAY[CAST(:key AS text)], NULL)) "
)
ORDER = bindparam("request_order", type_=JSONB(none_as_null=True))
CREATE = text(f"{INSERT} ON CONFLICT DO NOTHING RETURNING {COLUMNS}").bindparams(
    bindparam("request", type_=JSONB), ORDER
)
# A schedule that is stored again with the same times keeps its next run: otherwise an hourly deployment would postpone
# a two-hourly schedule indefinitely.
PUT = text(
    f"{INSERT} ON CONFLICT (namespace, name) DO UPDATE SET cron = EXCLUDED.cron, "  # noqa: S608
    "timezone = EXCLUDED.timezone, interval_seconds = EXCLUDED.interval_seconds, missed = EXCLUDED.missed, "
    "request = EXCLUDED.request, "
    "request_order = EXCLUDED.request_order, submitter_keys = ARRAY(SELECT DISTINCT unnest("
    "COALESCE(s.submitter_keys, '{bootstrap}') || EXCLUDED.submitter_keys)), "
    "enabled = EXCLUDED.enabled, last_error = NULL, next_at = CASE WHEN s.enabled "
    "AND (s.cron, s.timezone, s.interval_seconds) "
    "IS NOT DISTINCT FROM (EXCLUDED.cron, EXCLUDED.timezone, EXCLUDED.interval_seconds) "
    f"THEN s.next_at ELSE EXCLUDED.next_at END RETURNING {COLUMNS}, xmax = 0 AS created"
).bindparams(bindparam("request", type_=JSONB), ORDER)
DELETE = text(
    f"DELETE FROM schedules WHERE namespace = :namespace AND name = :name RETURNING {COLUMNS}"  # noqa: S608
)


class ScheduleDefinition(Strict):
    """A schedule: `cron` with its time zone or `interval_seconds`, and the request for the task."""

    name: Name
    cron: str | None = None
    timezone: str | None = Field(None, description="The time zone of `cron`; UTC by default.")
    interval_seconds: float | None = Field(None, ge=1, le=TEN_YEARS)
    missed: Missed = Field("once", description="What to do about missed runs: skip, once or all.")
    enabled: bool = True
    request: dict[str, Any] = Field(description="The task, as it would be submitted.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.cron is None) == (self.interval_seconds is None):
            raise ValueError("a schedule must have either `cron` or `interval_seconds`")
        if self.interval_seconds is not None and self.timezone is not None:
            raise ValueError("`timezone` belongs to `cron`; an interval must have none")
        return self

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> ScheduleDefinition:
        """Build a definition from plain data, with a valid timetable and task request.

        Raises:
            InvalidInput: names each wrong field.
        """
        try:
            found = cls.model_validate(dict(data))
        except ValidationError as error:
            faults = faults_of(error)
            raise InvalidInput("The schedule is not valid: " + "; ".join(faults) + ".", faults=faults) from None
        found.timetable(anchor=datetime.now(UTC))
        if given := [name for name in NOT_SCHEDULED if name in found.request]:
            raise InvalidInput(
                f"The request of a schedule must not have `{given[0]}`, which would be the same for each run."
            )
        task_request(found.name, found.request)
        return found

    def timetable(self, *, anchor: datetime) -> Timetable:
        """Return the times at which it runs.

        Args:
            anchor: the start of an interval schedule.

        Raises:
            InvalidInput: the expression or the time zone is invalid.
        """
        return timetable(self.cron, self.timezone, self.interval_seconds, anchor=anchor)


def timetable(cron: str | None, timezone: str | None, interval_seconds: float | None, *, anchor: datetime) -> Timetable:
    """Return the times at which a schedule runs, from its columns.

    Raises:
        InvalidInput: the expression or the time zone is invalid.
    """
    if cron is not None:
        return Cron(cron, timezone or "UTC")
    return Every(timedelta(seconds=interval_seconds or 0), anchor)


def task_request(name: str, request: Mapping[str, Any], **more: Any) -> TaskRequest:
    """Return the request for one task of a schedule, labelled with its name.

    Args:
        more: fields of this run, such as its idempotency key.

    Raises:
        InvalidInput: names each wrong field.
    """
    checked = TaskRequest.parse({**request, **more})
    return TaskRequest.parse({**request, **more, "labels": {**(checked.labels or {}), LABEL: name}})


def submitter(name: str) -> str:
    """Return the submitter of a schedule's tasks, for their record."""
    return f"schedule:{name}"


def list_schedules(connection: Connection, namespace: str, *, limit: int, after: str = "") -> Page:
    """Return schedules by name."""
    values = {"namespace": namespace, "after": after, "most": limit + 1}
    page = page_of(connection.execute(LIST, values).mappings().all(), limit, "name")
    return Page([in_order(row, "request") for row in page.items], page.next)


def get(connection: Connection, namespace: str, name: str) -> dict[str, Any]:
    """Return one schedule.

    Raises:
        NotFound: there is no schedule of that name.
    """
    row = connection.execute(GET, {"namespace": namespace, "name": name}).mappings().one_or_none()
    if row is None:
        raise no_such_schedule(name)
    return in_order(row, "request")


def find(connection: Connection, namespace: str, name: str) -> dict[str, Any] | None:
    """Return what a change of a schedule replaces, and keep others from changing it; None if there is no such one."""
    values = {"namespace": namespace, "name": name}
    connection.execute(LOCK, values)
    row = connection.execute(GET, values).mappings().one_or_none()
    return None if row is None else in_order(row, "request")


def try_out(engine: Engine, namespace: str, name: str, request: Mapping[str, Any]) -> None:
    """Refuse a request that every run would be refused for; called before a schedule is stored.

    Raises:
        MinionError: the task would be refused today, and why.
    """
    submission.prepare(engine, [task_request(name, request, namespace=namespace)], submitted_by=submitter(name))


def create(
    connection: Connection, namespace: str, definition: ScheduleDefinition, *, key: str | None = None
) -> dict[str, Any]:
    """Store a new schedule.

    Args:
        key: here and below: the id of the key that writes it, or `bootstrap`. All these keys submit its tasks.

    Raises:
        Conflict: there is already a schedule of that name.
    """
    row = connection.execute(CREATE, _values(namespace, definition, key)).mappings().one_or_none()
    if row is None:
        raise Conflict(f"There is a schedule named {definition.name!r} already. Replace it with PUT, or delete it.")
    return in_order(row, "request")


def put(
    connection: Connection, namespace: str, definition: ScheduleDefinition, *, key: str | None = None
) -> tuple[dict[str, Any], bool]:
    """Store a schedule, replacing one of the same name. Return it, and whether it is new."""
    row = in_order(connection.execute(PUT, _values(namespace, definition, key)).mappings().one(), "request")
    created: bool = row.pop("created")
    return row, created


def change(
    connection: Connection, namespace: str, name: str, changes: Mapping[str, Any], *, key: str | None = None
) -> dict[str, Any]:
    """Change some fields of a schedule; null removes one.

    Raises:
        NotFound: there is no schedule of that name.
        MinionError: the changed schedule would be invalid.
    """
    connection.execute(LOCK, {"namespace": namespace, "name": name})
    stored = get(connection, namespace, name)
    kept = {field: stored[field] for field in ScheduleDefinition.model_fields if stored[field] is not None}
    definition = ScheduleDefinition.parse(
        {field: value for field, value in {**kept, **changes, "name": name}.items() if value is not None}
    )
    return put(connection, namespace, definition, key=key)[0]


def delete(connection: Connection, namespace: str, name: str) -> dict[str, Any]:
    """Delete a schedule; its tasks stay. Return the deleted schedule.

    Raises:
        NotFound: there is no schedule of that name.
    """
    row = connection.execute(DELETE, {"namespace": namespace, "name": name}).mappings().one_or_none()
    if row is None:
        raise no_such_schedule(name)
    return in_order(row, "request")


def prepare_run(
    engine: Engine, namespace: str, name: str, *, idempotency_key: str | None = None, submitter_key: str | None = None
) -> list[NewTask]:
    """Prepare an extra run of a schedule, now, for `lifecycle.accept`; the schedule's times do not change.

    Args:
        submitter_key: the key that submits it, beside those that wrote the schedule.

    Raises:
        NotFound: there is no schedule of that name.
        MinionError: the task is refused, and why.
    """
    with autocommit(engine).connect() as connection:
        stored = get(connection, namespace, name)
    more = {"namespace": namespace} | ({"idempotency_key": idempotency_key} if idempotency_key else {})
    request = task_request(name, stored["request"], **more)
    return submission.prepare(engine, [request], submitted_by=submitter(name), submitter_key=submitter_key)


def no_such_schedule(name: str) -> NotFound:
    """Return the error for an unknown schedule name."""
    return NotFound(f"There is no schedule named {name!r}. `minion schedules` lists them.")


def _values(namespace: str, definition: ScheduleDefinition, key: str | None) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        **definition.model_dump(),
        "request_order": order_of(definition.request),
        "namespace": namespace,
        "key": key,
        "timezone": definition.timezone or "UTC",
        "next_at": next(definition.timetable(anchor=now).after(now)),
    }
