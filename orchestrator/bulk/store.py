"""Bulk acts as rows: start, list, stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.access.actors import Actor, Key
from shared.access.roles import Permission
from shared.audit import log
from shared.errors import Conflict, InvalidInput, NotFound
from shared.tasks import queries
from shared.tasks.queries import Page, TaskFilter, page_of
from shared.tasks.states import FINAL, State

Act = Literal["cancel", "replay", "label"]
ACTS: tuple[Act, ...] = get_args(Act)
NEEDED: Mapping[str, Permission] = {
    "cancel": Permission.TASKS_CANCEL,
    "replay": Permission.TASKS_REPLAY,
    "label": Permission.TASKS_LABEL,
}
"""The permission that each act needs, as for a single task."""
MOST_RUNNING = 100
KEPT = timedelta(days=90)
"""How long an act that has ended is kept."""

FILTERS: TypeAdapter[TaskFilter] = TypeAdapter(TaskFilter)
ACTORS: TypeAdapter[Actor] = TypeAdapter(Actor)

COLUMNS = (
    "id, namespace, act, query, options, rate, state, matched, more, done, failed, skipped, failures, created_at, "
    "created_by, ended_at, stopped_by"
)
# A key that reaches less than a namespace sees what it has started itself.
REACHED = (
    "(CAST(:namespace AS text) IS NULL OR namespace = :namespace) "
    "AND (CAST(:maker AS text) IS NULL OR maker->>'identity' = :maker)"
)
NOW = text("SELECT clock_timestamp()")
INSERT = text(
    "INSERT INTO bulk_acts (namespace, act, query, chosen, options, rate, matched, more, key_id, maker, created_by) "  # noqa: S608
    "VALUES (:namespace, :act, :query, :chosen, :options, :rate, :matched, :more, :key_id, :maker, :created_by) "
    f"RETURNING {COLUMNS}"
).bindparams(*(bindparam(name, type_=JSONB) for name in ("chosen", "options", "maker")))
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('minions ' || current_schema()), hashtext('bulk acts'))")
# A form that is sent twice starts one act: the time of its dry run tells it from a later one.
EARLIER = text(
    f"SELECT {COLUMNS} FROM bulk_acts WHERE namespace = :namespace AND act = :act AND query = :query "  # noqa: S608
    "AND options = :options AND chosen->>'created_before' = :before AND maker->>'identity' = :maker "
    "AND state <> 'stopped' ORDER BY id DESC LIMIT 1"
).bindparams(bindparam("options", type_=JSONB))
COUNT_RUNNING = text("SELECT count(*) FROM bulk_acts WHERE state = 'running'")
FORGET = text("DELETE FROM bulk_acts WHERE state <> 'running' AND ended_at < now() - CAST(:kept AS interval)")
LIST = text(
    f"SELECT {COLUMNS} FROM bulk_acts WHERE {REACHED} AND (CAST(:state AS text) IS NULL OR state = :state) "  # noqa: S608
    "AND (CAST(:before AS uuid) IS NULL OR id < :before) ORDER BY id DESC LIMIT :most"
)
GET = text(f"SELECT {COLUMNS} FROM bulk_acts WHERE id = :id AND {REACHED}")  # noqa: S608
# Waits for the act on one task that may be going on, and no further one begins.
STOP = text(
    "UPDATE bulk_acts SET state = 'stopped', stopped_by = :who, ended_at = now() WHERE id = :id "  # noqa: S608
    f"AND state = 'running' RETURNING {COLUMNS}"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A bulk act that could be started.

    Attributes:
        act: one of `ACTS`.
        query: as it was written.
        chosen: the tasks that it is about, bounded by the time of the plan.
        options: of the act.
        rate: tasks a second.
        by_state: the number of tasks in each state.
        more: there may be more of them.
        until: the time of the plan: younger tasks do not belong to it.
        is_of_dry_run: that time is the one of an earlier dry run.
    """

    act: Act
    query: str
    chosen: TaskFilter
    options: dict[str, Any]
    rate: float
    by_state: dict[str, int]
    more: bool
    until: datetime
    is_of_dry_run: bool

    @property
    def matched(self) -> int:
        """The number of tasks that were counted."""
        return sum(self.by_state.values())


def plan(
    connection: Connection,
    act: Act,
    query: str,
    chosen: TaskFilter,
    options: dict[str, Any],
    rate: float,
    until: datetime | None = None,
) -> Plan:
    """Return what an act would do: the dry run.

    Args:
        chosen: the tasks of the query, within the bounds of the caller's key.
        until: only tasks that were created before; None: before now.

    Raises:
        InvalidInput: the query names only states in which the act has no effect.
    """
    # A millisecond later: ids have the time in milliseconds, and tasks of this one are seen.
    now = connection.execute(NOW).scalar_one() + timedelta(milliseconds=1)
    given, until = until, min(until or now, now)
    before = min(until, chosen.created_before or until)
    able = replace(chosen, states=_states(act, chosen), created_before=before)
    if act == "replay":
        # As `orchestrator.api.replays`: the parent of a failed task is not replayed beside it.
        able = replace(able, own_failure=None if chosen.agent else True)
        able = able if options["again"] else replace(able, unreplayed=True)
    by_state, more = queries.count_searched(connection, able)
    return Plan(act, query, able, options, rate, by_state, more, until, is_of_dry_run=given == before)


def start(connection: Connection, planned: Plan, actor: Actor) -> dict[str, Any]:
    """Start a bulk act, and return its row. The same plan of a dry run starts one act, however often it is sent.

    Raises:
        Forbidden: the actor may not do the act.
        Conflict: too many are running.
    """
    actor.key.require(NEEDED[planned.act])
    connection.execute(ONE_AT_A_TIME)
    values = {
        "namespace": planned.chosen.namespace,
        "act": planned.act,
        "query": planned.query,
        "chosen": FILTERS.dump_python(planned.chosen, mode="json", exclude_defaults=True),
        "options": planned.options,
        "rate": planned.rate,
        "matched": planned.matched,
        "more": planned.more,
        "key_id": actor.key.id,
        "maker": {**ACTORS.dump_python(actor, mode="json"), "identity": actor.key.identity},
        "created_by": str(actor),
    }
    if planned.is_of_dry_run and (earlier := _earlier(connection, values)) is not None:
        return earlier
    if connection.execute(COUNT_RUNNING).scalar_one() >= MOST_RUNNING:
        raise Conflict(f"{MOST_RUNNING} bulk acts are running, and that is the most. Wait for one, or stop one.")
    connection.execute(FORGET, {"kept": KEPT})
    row = dict(connection.execute(INSERT, values).mappings().one())
    named = ("act", "query", "rate", "matched")
    _record(connection, actor, "bulk_act.start", row, {name: row[name] for name in named})
    return row


def list_acts(
    connection: Connection, key: Key, *, namespace: str | None, state: str | None, limit: int, before: UUID | None
) -> Page:
    """Return bulk acts that a key reaches, the newest first."""
    values = {**_bounds(key), "state": state, "before": before, "most": limit + 1}
    if namespace is not None:
        values["namespace"] = namespace
    return page_of(connection.execute(LIST, values).mappings().all(), limit, "id")


def get(connection: Connection, id: UUID, key: Key) -> dict[str, Any]:
    """Return a bulk act.

    Raises:
        NotFound: there is none, or the key does not reach it.
    """
    row = connection.execute(GET, {"id": id, **_bounds(key)}).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no bulk act {id}. `minion bulk list` lists them.")
    return dict(row)


def stop(connection: Connection, id: UUID, actor: Actor) -> dict[str, Any]:
    """Stop a bulk act: no further task is acted on. One that has ended stays as it is.

    Raises:
        NotFound: there is none, or the actor does not reach it.
        Forbidden: the actor may not do the act itself.
    """
    found = get(connection, id, actor.key)
    actor.key.require(NEEDED[found["act"]])
    row = connection.execute(STOP, {"id": id, "who": str(actor)}).mappings().one_or_none()
    if row is None:
        return get(connection, id, actor.key)
    progress = {name: row[name] for name in ("done", "failed", "skipped")}
    _record(connection, actor, "bulk_act.stop", dict(row), progress)
    return dict(row)


def filter_of(stored: Mapping[str, Any]) -> TaskFilter:
    """Return a stored filter.

    Raises:
        ValueError: this release does not know all of it: without that, the act would be about more tasks.
    """
    if unknown := stored.keys() - {field.name for field in fields(TaskFilter)}:
        raise ValueError(f"unknown fields of a filter: {', '.join(sorted(unknown))}")
    return FILTERS.validate_python(stored)


def _earlier(connection: Connection, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the act that the same plan has started."""
    before, maker = values["chosen"]["created_before"], values["maker"]["identity"]
    row = connection.execute(EARLIER, {**values, "before": before, "maker": maker}).mappings().one_or_none()
    return None if row is None else dict(row)


def _states(act: Act, chosen: TaskFilter) -> tuple[State, ...]:
    """Return the states of a query in which an act has an effect."""
    able = {"cancel": set(State) - FINAL, "replay": set(FINAL), "label": set(State)}[act]
    states = tuple(state for state in State if state in able and state in (chosen.states or able))
    if not states:
        which = "have not ended" if act == "cancel" else "have ended"
        raise InvalidInput(
            f"The query names only states in which nothing can be done: `{act}` is for tasks that {which}. "
            f"`state:` must be one of {', '.join(state for state in State if state in able)}."
        )
    return () if len(states) == len(State) else states


def _bounds(key: Key) -> dict[str, Any]:
    return {"namespace": key.scope.namespace, "maker": key.identity if key.scope.is_partial else None}


def _record(connection: Connection, actor: Actor, act: str, row: dict[str, Any], after: dict[str, Any]) -> None:
    log.record(connection, actor, act, row["id"], namespace=row["namespace"], after=after)
