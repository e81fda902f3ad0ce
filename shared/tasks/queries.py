"""Reading stored tasks as JSON-ready dictionaries.

Lists are keyset pages: their cost does not grow with the position, and no row is skipped or shown twice when others
are added in the meantime.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TEXT
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from shared.access.scope import Scope
from shared.contracts.key_order import in_order, ordered
from shared.contracts.requests import Usage
from shared.errors import AmbiguousId, NotFound
from shared.tasks.response import AgentResponse
from shared.tasks.states import FINAL, State

MAX_PAGE = 1000
MAX_OUTPUTS = 100  # tasks per page with outputs
MAX_OUTPUT_BYTES = 8 << 20
MAX_CANDIDATES = 10
UNROUTED = "(unrouted)"  # in counts: tasks whose message has not been routed to an agent yet

# The tasks of a page, without input, messages and output, which may be megabytes each.
SUMMARIES = (
    "SELECT id, namespace, agent, agent_version, state, capability, priority, error, error_fingerprint, "
    "conversation_id, key, labels, parent_id, root_id, depth, replay_of, submitted_by, claim, attempts, losses, "
    "worker_id, open_waits, wait_reason, due_at, cancel_requested, deadline, created_at, queued_at, updated_at, "
    "finished_at FROM task_overview WHERE id IN (SELECT id FROM page)"
)
# A task whose input has not been checked yet has no queue; it will be the queue of its agent version.
CAPABILITY = "COALESCE(s.capability, t.capability, v.capability)"
JOINED = "tasks t JOIN task_status s ON s.task_id = t.id LEFT JOIN agent_versions v ON v.id = t.agent_version_id "
# As lists show it: without the tasks below it.
OWN_COST = "(SELECT COALESCE(sum(e.cost_microdollars), 0) FROM executions e WHERE e.task_id = t.id)"
# One condition for each field of TaskFilter. Times are compared with the time inside the id, which is indexed; both
# tables' ids are bounded, because the planner does not infer one bound from the other.
CONDITIONS = {
    "namespace": "t.namespace = :namespace",
    "state": "s.state = :state",
    "states": "s.state = ANY(:states)",
    "agent": "t.agent_name = :agent",
    "capability": f"{CAPABILITY} = :capability",
    "key": "t.key = :key",
    "labels": "t.labels @> :labels",
    "root_id": "t.root_id = :root_id",
    "parent_id": "t.parent_id = :parent_id",
    "replay_of": "t.replay_of = :replay_of",
    "conversation_id": "t.conversation_id = :conversation_id",
    "error_fingerprint": "t.id IN (SELECT o.task_id FROM task_outcomes o WHERE o.state = 'failed' "
    "AND o.error_fingerprint = :error_fingerprint)",
    "function_version_id": "t.agent_version_id IN (SELECT p.id FROM agent_versions p "
    "LEFT JOIN tool_versions pt ON pt.id = p.tool_version_id "
    "WHERE p.function_version_id = :function_version_id OR pt.function_version_id = :function_version_id "
    "UNION SELECT at.agent_version_id FROM agent_version_tools at JOIN tool_versions tv ON tv.id = at.tool_version_id "
    "WHERE tv.function_version_id = :function_version_id)",
    "costs_over": f"{OWN_COST} > :costs_over",
    "costs_under": f"{OWN_COST} < :costs_under",
    # A trial cannot have a replay.
    "unreplayed": "NOT EXISTS (SELECT 1 FROM tasks r WHERE r.replay_of = t.id) AND t.journal_format <> 3",
    # For EXISTS the planner may read all outcomes into a hash table.
    "own_failure": "(SELECT o.error->>'type' FROM task_outcomes o WHERE o.task_id = t.id) "
    "IS DISTINCT FROM 'subtask_failed'",
    "created_after": "t.id >= :created_after AND s.task_id >= :created_after",
    "created_before": "t.id < :created_before AND s.task_id < :created_before",
    "before": "t.id < :before AND s.task_id < :before",
    "after": "t.id > :after AND s.task_id > :after",
    # A parameter would hide the reasons from the planner, which then could not use their index.
    "for_people": "s.state = 'waiting' AND s.wait_reason IN ('approval', 'answer')",
    "only_agents": "t.agent_name = ANY(:only_agents)",
    "only_capabilities": f"{CAPABILITY} = ANY(:only_capabilities)",
    "tenant": "t.key = :tenant",
    "tenant_prefix": "starts_with(t.key, :tenant_prefix)",
}
TYPES: dict[str, Any] = {
    "states": ARRAY(TEXT),
    "labels": JSONB,
    "created_after": PgUUID,
    "created_before": PgUUID,
    "only_agents": ARRAY(TEXT),
    "only_capabilities": ARRAY(TEXT),
}

TIMES = ("created_after", "created_before")
# What a search is driven by: the first of these filters that are given, each with an index in the order of the ids.
DRIVING = (
    ("root_id",),
    ("parent_id",),
    ("replay_of",),
    ("namespace", "conversation_id"),
    ("namespace", "agent"),
    ("error_fingerprint",),
    ("state",),
    ("states",),
)
MOST_SEARCHED = 10_000
MOST_COUNTED = 5_000
"""Tasks that a count looks at: it checks all conditions of each."""
# The conditions that counts have: of `task_status` alone.
COUNTED = {
    "namespace": "s.namespace = :namespace",
    "state": CONDITIONS["state"],
    "states": CONDITIONS["states"],
    "for_people": CONDITIONS["for_people"],
}

OVERVIEWS = (
    "SELECT o.*, t.input_order, e.output_order, t.routing, "
    "(SELECT minion_budget_of(b.task_id) FROM budgets b WHERE b.task_id = t.id) AS budget "
    "FROM task_overview o JOIN tasks t ON t.id = o.id LEFT JOIN task_outcomes e ON e.task_id = o.id"
)
OVERVIEW = text(f"{OVERVIEWS} WHERE o.id = :task")
# Those that have ended, in the order given, until they are too large together. The first is always included.
ENDED_OVERVIEWS = text(
    f"""
    WITH sized AS (
        SELECT t.id, array_position(:tasks, t.id) AS position,
               octet_length(concat(t.input::text, t.messages::text, e.output::text, c.value::text))
            FROM tasks t JOIN task_outcomes e ON e.task_id = t.id LEFT JOIN contents c ON c.sha256 = e.output_sha256
            WHERE t.id = ANY (:tasks) AND e.task_id = ANY (:tasks)
    ), fitting AS (
        SELECT id, position, sum(octet_length) OVER given <= :most OR row_number() OVER given = 1 AS fits
            FROM sized WINDOW given AS (ORDER BY position)
    )
    SELECT * FROM ({OVERVIEWS} WHERE o.id = ANY (ARRAY(SELECT id FROM fitting WHERE fits))) found
        ORDER BY array_position(:tasks, id)
    """  # noqa: S608 - constants
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))
USAGE = text(
    "SELECT COALESCE(sum(input_tokens), 0), COALESCE(sum(output_tokens), 0), COALESCE(sum(cost_microdollars), 0) "
    "FROM executions WHERE task_id = :task"
)
STARTING = f"SELECT t.id, t.agent_name, s.state FROM {JOINED} "  # noqa: S608 - constants
STARTS = "t.id BETWEEN :first AND :last AND s.task_id BETWEEN :first AND :last"
# The first output is always included, however large it is.
OUTPUTS = text(
    """
    SELECT id, fits, CASE WHEN fits THEN output END AS output, output_order FROM (
        SELECT o.task_id AS id, COALESCE(o.output, c.value) AS output, o.output_order,
               COALESCE(sum(octet_length(COALESCE(o.output, c.value)::text)) OVER newest <= :most, true)
                   OR row_number() OVER newest = 1 AS fits
            FROM task_outcomes o LEFT JOIN contents c ON c.sha256 = o.output_sha256 WHERE o.task_id = ANY (:tasks)
            WINDOW newest AS (ORDER BY o.task_id DESC)
    ) sized
    """
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))
HAS_MESSAGES = "EXISTS (SELECT 1 FROM messages WHERE namespace = :place AND conversation_id = :conversation)"
EXISTS = text("SELECT EXISTS (SELECT 1 FROM tasks WHERE id = :task)")
BELOW = "SELECT id FROM tasks WHERE id = :task UNION ALL SELECT c.id FROM tasks c JOIN tree ON c.parent_id = tree.id"
STEPS = text(
    "SELECT number, kind, name, status, effect, request_hash, claim, input, input_order, output, output_order, error, "
    "stdout, usage, cost_microdollars, child_id, function_version_id, copied_from, started_at, finished_at, approvals, "
    "program, line "
    "FROM steps WHERE task_id = :task AND number > :after ORDER BY number LIMIT :most"
)
# Without what may be large.
STEP_SUMMARIES = text(
    "SELECT number, kind, name, status, effect, claim, usage, cost_microdollars, child_id, function_version_id, "
    "copied_from, started_at, finished_at, due_at, error->>'type' AS error_type, program, line FROM steps "
    "WHERE task_id = :task AND number > :after ORDER BY number LIMIT :most"
)
USAGES = text(
    "SELECT task_id, sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens, "
    "sum(cost_microdollars)::bigint AS cost_microdollars FROM executions WHERE task_id = ANY (:tasks) GROUP BY task_id"
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))
EXECUTIONS = text(
    "SELECT e.claim, e.worker_id, w.name AS worker, e.outcome, e.error, e.cpu_seconds, e.peak_memory_bytes, "
    "e.input_tokens, e.output_tokens, e.cost_microdollars, e.started_at, e.finished_at "
    "FROM executions e JOIN workers w ON w.id = e.worker_id "
    "WHERE e.task_id = :task AND e.claim > :after ORDER BY e.claim LIMIT :most"
)
ENDED = text(
    "SELECT w.id FROM unnest(:tasks) AS w (id) LEFT JOIN task_status s ON s.task_id = w.id "
    "WHERE s.task_id IS NULL OR s.state = ANY(:final)"
).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)), bindparam("final", type_=ARRAY(TEXT)))


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list; `next` is the start of the following page, None on the last."""

    items: list[dict[str, Any]]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Criteria for tasks; a field that is not set allows all. All `labels` must match; `created_before` is exclusive.

    `for_people`: they wait for a person. `unreplayed`: no other task is their replay, and they are no trials, which
    cannot have one. `own_failure`: they did not fail because of a task below them. `costs_over` and `costs_under`: in
    microdollars, exclusive. The fields from `only_agents` on are the bounds of a key.
    """

    namespace: str | None = "default"
    states: tuple[State, ...] = ()
    agent: str | None = None
    capability: str | None = None
    key: str | None = None
    labels: Mapping[str, str] | None = None
    root_id: UUID | None = None
    parent_id: UUID | None = None
    replay_of: UUID | None = None
    conversation_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    error_fingerprint: str | None = None
    function_version_id: UUID | None = None
    for_people: bool | None = None
    costs_over: int | None = None
    costs_under: int | None = None
    unreplayed: bool | None = None
    own_failure: bool | None = None
    only_agents: tuple[str, ...] = ()
    only_capabilities: tuple[str, ...] = ()
    tenant: str | None = None
    tenant_prefix: str | None = None


EVERYTHING = TaskFilter(namespace=None)


def reached(scope: Scope) -> TaskFilter:
    """Return the filter for the tasks that a scope reaches."""
    return TaskFilter(namespace=scope.namespace, **scope.conditions)


def matches(connection: Connection, chosen: TaskFilter, task: UUID) -> bool:
    """Return whether a task matches a filter now."""
    conditions, values = _conditions(chosen)
    statement = _bind_types(
        f"SELECT EXISTS (SELECT FROM {JOINED} WHERE t.id = :task AND {' AND '.join(conditions)})",  # noqa: S608
        values,
    )
    return bool(connection.scalar(statement, {**values, "task": task}))


def get_task(connection: Connection, task: UUID) -> dict[str, Any]:
    """Return a task's row of `task_overview`, its budget, and how its agent was chosen if the request named none.

    Raises:
        NotFound: there is no such task.
    """
    row = connection.execute(OVERVIEW, {"task": task}).mappings().one_or_none()
    if row is None:
        raise no_such_task(task)
    return in_order(row, "input", "output")


def load_ended(connection: Connection, tasks: Sequence[UUID]) -> list[dict[str, Any]]:
    """Return those of the tasks that have ended, each like `get_task`, in the order given.

    The list ends before the tasks would exceed `MAX_OUTPUT_BYTES`, but it has at least one task if any has ended.
    """
    rows = connection.execute(ENDED_OVERVIEWS, {"tasks": list(tasks), "most": MAX_OUTPUT_BYTES}).mappings()
    return [in_order(row, "input", "output") for row in rows]


def states_of(connection: Connection, tasks: Sequence[UUID], *, within: TaskFilter = EVERYTHING) -> dict[UUID, State]:
    """Return the states of tasks that match `within`.

    Raises:
        NotFound: there is no such task; the first one is named.
    """
    conditions, bounds = _conditions(within)
    statement = _bind_types(
        f"{STARTING} WHERE t.id = ANY (:tasks) AND s.task_id = ANY (:tasks) AND {' AND '.join(conditions)}", bounds
    ).bindparams(bindparam("tasks", type_=ARRAY(PgUUID)))
    found = {row.id: State(row.state) for row in connection.execute(statement, {**bounds, "tasks": list(tasks)})}
    for task in tasks:
        if task not in found:
            raise no_such_task(task)
    return found


def find_task(connection: Connection, digits: str, *, within: TaskFilter = EVERYTHING) -> UUID:
    """Return the task whose id begins with these hexadecimal digits, among those that match `within`.

    Raises:
        NotFound: there is no such task.
        AmbiguousId: there are several; `detail["candidates"]` has some of their ids, the newest first.
    """
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    conditions, bounds = _conditions(within)
    statement = _bind_types(
        f"{STARTING} WHERE {STARTS} AND {' AND '.join(conditions)} ORDER BY t.id DESC LIMIT :most", bounds
    )
    values = {**bounds, "first": first, "last": last, "most": MAX_CANDIDATES + 1}
    found = connection.execute(statement, values).all()
    if not found:
        raise NotFound(f"There is no task whose id begins with {digits}.")
    if len(found) == 1:
        return UUID(str(found[0].id))
    candidates = found[:MAX_CANDIDATES]
    listed = ", ".join(f"{task.id} ({task.agent_name or 'not routed'}, {task.state})" for task in candidates)
    more = " and more" if len(found) > MAX_CANDIDATES else ""
    raise AmbiguousId(
        f"More than one task has an id that begins with {digits}: {listed}{more}. Give more characters: an id begins "
        "with the time of its task, so tasks of the same minute share 8 characters, and of the same moment 12.",
        candidates=[str(task.id) for task in candidates],
    )


def is_conversation_within(connection: Connection, namespace: str, conversation: str, within: TaskFilter) -> bool:
    """Return whether all messages of a conversation are of tasks that match `within`; of a new one, they are.

    Messages outlive their tasks: if none of the tasks is left, nothing shows whose they are.
    """
    conditions, bounds = _conditions(within)
    statement = _bind_types(
        f"SELECT COALESCE(bool_and(COALESCE({' AND '.join(conditions)}, false)), NOT {HAS_MESSAGES}) "  # noqa: S608
        f"FROM {JOINED} WHERE t.namespace = :place AND t.conversation_id = :conversation AND t.parent_id IS NULL",
        bounds,
    )
    return bool(connection.scalar(statement, {**bounds, "place": namespace, "conversation": conversation}))


def list_tasks(
    connection: Connection,
    chosen: TaskFilter,
    *,
    limit: int,
    before: UUID | None = None,
    with_outputs: bool = False,
) -> Page:
    """Return the newest tasks first, without input and messages.

    Args:
        limit: the largest number of tasks.
        before: the `next` of the previous page.
        chosen: with a bound of the cost, a page may be short, as one of `search_tasks`.
        with_outputs: include the outputs. A page then ends after `MAX_OUTPUTS` tasks, or before their outputs would
            exceed `MAX_OUTPUT_BYTES`, but it has at least one task.
    """
    if with_outputs:
        return _with_outputs(connection, list_tasks(connection, chosen, limit=min(limit, MAX_OUTPUTS), before=before))
    if chosen.costs_over is not None or chosen.costs_under is not None:
        return search_tasks(connection, chosen, limit=limit, before=before)
    conditions, values = _conditions(chosen)
    if before is not None:
        conditions, values = [*conditions, CONDITIONS["before"]], {**values, "before": before}
    statement = _bind_types(
        f"WITH page AS MATERIALIZED (SELECT t.id FROM {JOINED} WHERE "  # noqa: S608
        f"{' AND '.join(conditions)} ORDER BY t.id DESC LIMIT :most) {SUMMARIES} ORDER BY id DESC",
        values,
    )
    rows = connection.execute(statement, {**values, "most": limit + 1}).mappings().all()
    return page_of(rows, limit, "id")


def list_oldest(connection: Connection, chosen: TaskFilter, *, limit: int, after: UUID | None = None) -> Page:
    """Return the oldest tasks first, as `list_tasks` does the newest."""
    conditions, values = _conditions(chosen)
    if after is not None:
        conditions, values = [*conditions, CONDITIONS["after"]], {**values, "after": after}
    statement = _bind_types(
        f"WITH page AS MATERIALIZED (SELECT t.id FROM {JOINED} WHERE "  # noqa: S608
        f"{' AND '.join(conditions)} ORDER BY s.task_id LIMIT :most) {SUMMARIES} ORDER BY id",
        values,
    )
    rows = connection.execute(statement, {**values, "most": limit + 1}).mappings().all()
    return page_of(rows, limit, "id")


@dataclass(frozen=True, slots=True)
class Found(Page):
    """A page of a search.

    Attributes:
        is_cut: the search ended before the page was full: `next` continues it.
    """

    is_cut: bool = False


def search_tasks(connection: Connection, chosen: TaskFilter, *, limit: int, before: UUID | None = None) -> Found:
    """Return the newest tasks first, as `list_tasks` does, but look at no more than `MOST_SEARCHED`."""
    searched, values = _searched(chosen, "DESC", before)
    # The first query reads `looked` until the page is full; the second reads the rest, if it is not.
    statement = _bind_types(
        f"WITH looked AS MATERIALIZED ({searched}), "  # noqa: S608
        "page AS MATERIALIZED (SELECT id FROM looked WHERE matches LIMIT :most), "
        "rest AS (SELECT CASE WHEN (SELECT count(*) FROM page) < :most "
        "THEN (SELECT id FROM looked OFFSET :searched - 1) END AS until) "
        f"SELECT found.*, rest.until FROM rest LEFT JOIN ({SUMMARIES}) AS found ON true ORDER BY found.id DESC",
        values,
    )
    given = {**values, "searched": MOST_SEARCHED, "most": limit + 1}
    rows = connection.execute(statement, given).mappings().all()
    until = rows[0]["until"]
    page = page_of([row for row in rows if row["id"] is not None], limit, "id")
    for task in page.items:
        del task["until"]
    if until is None:
        return Found(page.items, page.next)
    is_shown = bool(page.items) and page.items[-1]["id"] == until
    return Found(page.items, str(until if is_shown else _after(until)), is_cut=True)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The tasks that were found in a stretch of a search, the oldest first.

    Attributes:
        until: the last task that was looked at; None: there are none behind the stretch.
    """

    found: list[UUID]
    until: UUID | None


def search_oldest(connection: Connection, chosen: TaskFilter, *, limit: int, after: UUID | None = None) -> Stretch:
    """Search the oldest tasks first, in a stretch of at most `MOST_SEARCHED`, and return the first that match."""
    searched, values = _searched(chosen, "ASC", after)
    statement = _bind_types(
        "SELECT id, matches FROM (SELECT id, matches, lead(id) OVER (ORDER BY id) IS NULL AS is_last "  # noqa: S608
        f"FROM ({searched}) AS looked) AS placed WHERE matches OR is_last ORDER BY id LIMIT :most",
        values,
    )
    rows = connection.execute(statement, {**values, "searched": MOST_SEARCHED, "most": limit}).all()
    if not rows:
        return Stretch([], None)
    return Stretch([row.id for row in rows if row.matches], rows[-1].id)


def count_searched(connection: Connection, chosen: TaskFilter) -> tuple[dict[str, int], bool]:
    """Count tasks by state among the newest `MOST_COUNTED` of a search; and return whether there may be more."""
    searched, values = _searched(chosen, "DESC", None)
    statement = _bind_types(
        "SELECT state, count(*) FILTER (WHERE matches) AS number, count(*) AS looked "  # noqa: S608
        f"FROM ({searched}) AS looked GROUP BY state ORDER BY state",
        values,
    )
    rows = connection.execute(statement, {**values, "searched": MOST_COUNTED}).all()
    return {row.state: row.number for row in rows if row.number}, sum(row.looked for row in rows) == MOST_COUNTED


def _searched(chosen: TaskFilter, order: str, at: UUID | None) -> tuple[str, dict[str, Any]]:
    """Return a query of the first `:searched` tasks that a search looks at, and the values of its other parameters.

    An index finds the tasks of the most selective filter in their order, and the others are applied to those.

    Args:
        order: `ASC` or `DESC`, by id.
        at: the cursor.
    """
    _, values = _conditions(chosen)
    driving = next((names for names in DRIVING if values.keys() >= set(names)), ())
    inside = [CONDITIONS[name] for name in values if name in driving or name in TIMES]
    others = [CONDITIONS[name] for name in values if name not in driving and name not in TIMES]
    if at is not None:
        cursor = "after" if order == "ASC" else "before"
        inside, values = [*inside, CONDITIONS[cursor]], {**values, cursor: at}
    end = f"ORDER BY id {order} LIMIT :searched"
    of_one = f"SELECT t.id, s.state, ({' AND '.join(others) or 'true'}) AS matches FROM {JOINED} WHERE "  # noqa: S608
    if driving != ("states",):
        return f"{of_one} {' AND '.join(inside) or 'true'} {end}", values
    # The index has the order of the ids in each state. The planner must see each of them by itself.
    inside.remove(CONDITIONS["states"])
    wanted = {f"state_{number}": state for number, state in enumerate(values.pop("states"))}
    of_each = [f"({of_one} {' AND '.join([f's.state = :{name}', *inside])} {end})" for name in wanted]
    return f"SELECT * FROM ({' UNION ALL '.join(of_each)}) AS of_all {end}", {**values, **wanted}  # noqa: S608


def _after(last: UUID) -> UUID:
    """Return a cursor behind the last task of a search, without its id: the reader may not be allowed to know it."""
    return UUID(int=last.int | (1 << 62) - 1)


def count_up_to(connection: Connection, chosen: TaskFilter, most: int) -> int | None:
    """Count tasks by namespace, state and reason of a wait, but no more than `most`.

    None: the filter has other conditions, for which too much would have to be read.
    """
    _, values = _conditions(chosen)
    if not values.keys() <= COUNTED.keys():
        return None
    conditions = " AND ".join(COUNTED[name] for name in values) or "true"
    statement = _bind_types(
        f"SELECT count(*) FROM (SELECT FROM task_status s WHERE {conditions} LIMIT :most) AS counted",  # noqa: S608
        values,
    )
    return int(connection.execute(statement, {**values, "most": most}).scalar_one())


def _with_outputs(connection: Connection, page: Page) -> Page:
    """Return the page with outputs, truncated if they are too large together."""
    values = {"tasks": [task["id"] for task in page.items], "most": MAX_OUTPUT_BYTES}
    found = {row.id: row for row in connection.execute(OUTPUTS, values)}
    items: list[dict[str, Any]] = []
    for task in page.items:
        ended = found.get(task["id"])
        if ended is not None and not ended.fits and items:
            return Page(items, str(items[-1]["id"]))
        items.append({**task, "output": ended and ordered(ended.output, ended.output_order)})
    return Page(items, page.next)


def count_tasks(connection: Connection, chosen: TaskFilter) -> dict[str, dict[str, int]]:
    """Count tasks by capability and state: `{capability: {state: number}}`, without zeros."""
    conditions, values = _conditions(chosen)
    statement = _bind_types(
        f"SELECT COALESCE({CAPABILITY}, '{UNROUTED}') AS capability, s.state, count(*) AS number FROM {JOINED} "  # noqa: S608
        f"WHERE {' AND '.join(conditions)} GROUP BY 1, 2 ORDER BY 1, 2",
        values,
    )
    counts: dict[str, dict[str, int]] = {}
    for row in connection.execute(statement, values):
        counts.setdefault(row.capability, {})[row.state] = row.number
    return counts


def list_tree(
    connection: Connection,
    task: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    within: TaskFilter = EVERYTHING,
) -> Page:
    """Return a task and everything below it that matches `within`, the oldest first, without what may be large.

    Raises:
        NotFound: there is no such task.
    """
    conditions, values = _conditions(within)
    page = "SELECT id FROM tree"
    if values:
        page = f"SELECT tree.id FROM tree JOIN ({JOINED}) ON t.id = tree.id"  # noqa: S608
    statement = _bind_types(
        f"WITH RECURSIVE tree AS ({BELOW}), page AS MATERIALIZED ({page} WHERE {' AND '.join(conditions)} "
        f"AND (CAST(:after AS uuid) IS NULL OR tree.id > :after) ORDER BY tree.id LIMIT :most) {SUMMARIES} ORDER BY id",
        values,
    )
    return _of_task(connection, statement, task, limit, after, "id", **values)


def group_tree(connection: Connection, task: UUID, *, most: int, within: TaskFilter) -> list[dict[str, Any]]:
    """Return a task and everything below it that matches `within`, grouped by the agents from the task down to each.

    Args:
        most: the number of tasks to look at, those near the task first.

    Returns:
        For each `path` of agents (unrouted tasks have an empty name) and `state`: the `number` of tasks, the `first`
        of them, and their `cost_microdollars`. The oldest first.
    """
    conditions, values = _conditions(within)
    statement = _bind_types(
        "WITH RECURSIVE tree (id, path) AS ("  # noqa: S608
        "SELECT id, ARRAY[COALESCE(agent_name, '')] FROM tasks WHERE id = :task UNION ALL "
        "SELECT c.id, tree.path || COALESCE(c.agent_name, '') FROM tasks c JOIN tree ON c.parent_id = tree.id), "
        "looked AS MATERIALIZED (SELECT id, path FROM tree LIMIT :most) "
        "SELECT looked.path, s.state, count(*) AS number, (array_agg(looked.id ORDER BY looked.id))[1] AS first, "
        "COALESCE(sum(spent.cost), 0)::bigint AS cost_microdollars "
        f"FROM looked JOIN ({JOINED}) ON t.id = looked.id CROSS JOIN LATERAL ("
        "SELECT sum(e.cost_microdollars) AS cost FROM executions e WHERE e.task_id = looked.id) AS spent "
        f"WHERE {' AND '.join(conditions)} GROUP BY 1, 2 ORDER BY 4",
        values,
    )
    rows = connection.execute(statement, {**values, "task": task, "most": most}).mappings()
    return [dict(row) for row in rows]


def list_steps(connection: Connection, task: UUID, *, limit: int, after: int = 0) -> Page:
    """Return a task's journal, in the order of the steps' numbers.

    Raises:
        NotFound: there is no such task.
    """
    page = _of_task(connection, STEPS, task, limit, after, "number")
    return Page([in_order(step, "input", "output") for step in page.items], page.next)


def list_step_summaries(connection: Connection, task: UUID, *, limit: int, after: int = 0) -> Page:
    """Return a task's journal as `list_steps` does, without payloads.

    Raises:
        NotFound: there is no such task.
    """
    return _of_task(connection, STEP_SUMMARIES, task, limit, after, "number")


def get_step(connection: Connection, task: UUID, number: int) -> dict[str, Any]:
    """Return a step.

    Raises:
        NotFound: there is no such task or step.
    """
    found = list_steps(connection, task, limit=1, after=number - 1).items
    if not found or found[0]["number"] != number:
        raise NotFound(f"Task {task} has no step {number}.")
    return found[0]


def usages_of(connection: Connection, tasks: Collection[UUID]) -> dict[UUID, dict[str, Any]]:
    """Return the tokens and costs of the tasks, each without those of the tasks below it."""
    rows = connection.execute(USAGES, {"tasks": list(tasks)}).mappings()
    return {row["task_id"]: dict(row) for row in rows}


def list_executions(connection: Connection, task: UUID, *, limit: int, after: int = 0) -> Page:
    """Return a task's claims, the first one first.

    Raises:
        NotFound: there is no such task.
    """
    return _of_task(connection, EXECUTIONS, task, limit, after, "claim")


def ended(connection: Connection, tasks: Collection[UUID]) -> set[UUID]:
    """Return those of the tasks that no longer need to be waited for: they have ended, or were deleted."""
    return set(connection.scalars(ENDED, {"tasks": list(tasks), "final": sorted(FINAL)}))


def response_of(connection: Connection, task: dict[str, Any]) -> AgentResponse:
    """Return the standard response of a finished task."""
    usage = connection.execute(USAGE, {"task": task["id"]}).one()
    return AgentResponse(
        task_id=task["id"],
        agent=task["agent"] or "",
        state=task["state"],
        content=content_of(task["output"]),
        output=task["output"],
        conversation_id=task["conversation_id"],
        usage=Usage(input_tokens=usage[0], output_tokens=usage[1], cost_microdollars=usage[2]),
        finished_at=task["finished_at"],
    )


def content_of(output: Any) -> str:
    """Return an output as text: the text itself, its `content` field, or its JSON."""
    if isinstance(output, str):
        return output
    if isinstance(output, dict) and isinstance(output.get("content"), str):
        return str(output["content"])
    return "" if output is None else json.dumps(output, ensure_ascii=False)


def no_such_task(task: UUID) -> NotFound:
    """Return the error for an id of no task."""
    return NotFound(f"There is no task {task}.")


def first_id_at(moment: datetime) -> UUID:
    """Return the smallest UUIDv7 of a timestamp (whole milliseconds)."""
    milliseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def _of_task(
    connection: Connection, statement: TextClause, task: UUID, limit: int, after: Any, cursor: str, **more: Any
) -> Page:
    rows = connection.execute(statement, {**more, "task": task, "after": after, "most": limit + 1}).mappings().all()
    if not rows and not connection.scalar(EXISTS, {"task": task}):
        raise no_such_task(task)
    return page_of(rows, limit, cursor)


def page_of(rows: Sequence[RowMapping], limit: int, cursor: str) -> Page:
    """Build a page of `limit` rows from up to one row more; `cursor` names the column that sorts."""
    items = [dict(row) for row in rows[:limit]]
    return Page(items, str(items[-1][cursor]) if len(rows) > limit else None)


def _conditions(chosen: TaskFilter) -> tuple[list[str], dict[str, Any]]:
    """Return the SQL conditions of a filter, and the values of their parameters."""
    given = {field.name: getattr(chosen, field.name) for field in fields(chosen)}
    values = {name: value for name, value in given.items() if value not in (None, (), {})}
    for name in ("created_after", "created_before"):
        if name in values:
            values[name] = first_id_at(values[name])
    if len(chosen.states) == 1:  # equality lets the index (state, task_id) provide the order too
        values["state"] = values.pop("states")[0]
    return [CONDITIONS[name] for name in values] or ["true"], values


def _bind_types(statement: str, values: Mapping[str, Any]) -> TextClause:
    return text(statement).bindparams(*(bindparam(name, type_=TYPES[name]) for name in values if name in TYPES))
