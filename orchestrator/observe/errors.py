"""Kinds of errors: how often each fingerprint was counted in a time range, and whether an operator resolved it.

Counts are those of the statistics, so they outlive the tasks. The first and the last failure of a kind are found by an
index. A resolved kind is open again when a task fails with it later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT, TIMESTAMP

from orchestrator.observe import stats
from orchestrator.observe.stats import FILTERS, LISTS, Question
from shared.errors import NotFound
from shared.tasks.trials import FORMAT

State = Literal["open", "reopened", "resolved", "ignored"]
Decision = Literal["open", "resolved", "ignored"]
STATES: tuple[State, ...] = get_args(State)

MOST_KINDS = 200
MOST_JUDGED = 1000
"""Kinds that were resolved, of which a list finds out whether they have been seen again."""
MOST_VERSIONS = 20
MOST_LOOKED_AT = 200
"""Failures of a kind among which the first or the last one within a key's reach is looked for."""
BOUNDS = ("namespace", "agent", "only_agents", "only_capabilities", "tenant", "tenant_prefix")
UNDECIDED: dict[str, Any] = dict.fromkeys(("reason", "changed_at", "changed_by"))
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
WIDTHS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}

# An empty name: failures beyond the first kinds of an hour.
KINDS = text(
    f"""
    WITH counted AS MATERIALIZED (
        SELECT name, agent, version, min(step) AS type, min(bucket) AS first, max(bucket) AS last,
               sum(count)::bigint AS tasks
            FROM statistics WHERE {FILTERS} GROUP BY name, agent, version
    ), kinds AS (
        SELECT name AS fingerprint, min(type) AS type, min(first) AS first, max(last) AS last,
               sum(tasks)::bigint AS tasks,
               jsonb_agg(jsonb_build_object('agent', agent, 'version', version, 'tasks', tasks)
                         ORDER BY tasks DESC, agent, version DESC) AS versions
            FROM counted GROUP BY name
    ), totals AS (
        SELECT COALESCE(sum(tasks), 0)::bigint AS all_tasks, count(*) FILTER (WHERE fingerprint <> '') AS all_kinds,
               COALESCE(sum(tasks) FILTER (WHERE fingerprint = ''), 0)::bigint AS other_tasks FROM kinds
    ), chosen AS (
        SELECT k.*, d.state AS decision, d.reason, d.changed_at, d.changed_by, count(*) OVER () AS matching
            FROM kinds k LEFT JOIN error_states d ON d.namespace = :namespace AND d.fingerprint = k.fingerprint
            WHERE k.fingerprint <> '' AND (CAST(:fingerprint AS text) IS NULL OR k.fingerprint = :fingerprint)
              AND COALESCE(d.state, 'open') = ANY (:decisions)
            ORDER BY k.tasks DESC, k.fingerprint LIMIT :most
    )
    SELECT * FROM totals LEFT JOIN chosen ON true ORDER BY tasks DESC, fingerprint
    """  # noqa: S608 - constants
).bindparams(*LISTS, bindparam("decisions", type_=ARRAY(TEXT)))
TREND = text(
    f"SELECT bucket AS at, sum(count)::bigint AS tasks FROM statistics WHERE {FILTERS} AND name = :fingerprint "  # noqa: S608
    "GROUP BY bucket ORDER BY bucket"
).bindparams(*LISTS)
SEEN = """
    SELECT k.fingerprint, e.* FROM unnest(:fingerprints, :since) AS k (fingerprint, since) CROSS JOIN LATERAL (
        SELECT o.task_id, o.finished_at AS at, t.agent_name AS agent, v.number AS version,
               o.error->>'message' AS message, o.error->>'type' AS type
            FROM (SELECT task_id, finished_at, error FROM task_outcomes
                      WHERE state = 'failed' AND error_fingerprint = k.fingerprint AND finished_at > k.since
                      ORDER BY finished_at {order} LIMIT :looked_at) o
            JOIN tasks t ON t.id = o.task_id JOIN task_status s ON s.task_id = t.id
            LEFT JOIN agent_versions v ON v.id = t.agent_version_id
            WHERE t.namespace = :namespace AND t.journal_format <> {trial}
              AND (CAST(:agent AS text) IS NULL OR t.agent_name = :agent)
              AND (:only_agents = '{{}}' OR t.agent_name = ANY (:only_agents))
              AND (:only_capabilities = '{{}}'
                   OR COALESCE(s.capability, t.capability) = ANY (:only_capabilities))
              AND (CAST(:tenant AS text) IS NULL OR t.key = :tenant)
              AND (CAST(:tenant_prefix AS text) IS NULL OR starts_with(t.key, :tenant_prefix))
            ORDER BY o.finished_at {order} LIMIT 1) e
"""
SEEN_TYPES: list[Any] = [
    bindparam("fingerprints", type_=ARRAY(TEXT)),
    bindparam("since", type_=ARRAY(TIMESTAMP(timezone=True))),
    *(bindparam(name, type_=ARRAY(TEXT)) for name in ("only_agents", "only_capabilities")),
]
FIRST = text(SEEN.format(order="ASC", trial=FORMAT)).bindparams(*SEEN_TYPES)
LAST = text(SEEN.format(order="DESC", trial=FORMAT)).bindparams(*SEEN_TYPES)
ELSEWHERE = text(
    f"SELECT DISTINCT namespace FROM statistics WHERE {FILTERS} AND name = :fingerprint ORDER BY 1 LIMIT 10"  # noqa: S608
).bindparams(*LISTS)
FIND = text("SELECT state, reason, changed_at, changed_by FROM error_states WHERE namespace = :namespace "
            "AND fingerprint = :fingerprint")  # fmt: skip
STORE = text(
    """
    INSERT INTO error_states (namespace, fingerprint, state, reason, changed_at, changed_by)
        VALUES (:namespace, :fingerprint, :state, :reason, clock_timestamp(), :who)
        ON CONFLICT (namespace, fingerprint) DO UPDATE SET state = EXCLUDED.state, reason = EXCLUDED.reason,
            changed_at = EXCLUDED.changed_at, changed_by = EXCLUDED.changed_by
        RETURNING state, reason, changed_at, changed_by
    """
)
REMOVE = text("DELETE FROM error_states WHERE namespace = :namespace AND fingerprint = :fingerprint")

Item = dict[str, Any]


def list_errors(connection: Connection, question: Question, *, states: Collection[State] = STATES, limit: int) -> Item:
    """Return the most frequent kinds of errors of a namespace in a time range.

    Args:
        question: its filters must have a namespace.
        states: only kinds in one of these states.
    """
    totals, kinds = _kinds(connection, question, states)
    again = _seen_again(connection, question, kinds)
    found = [kind for kind in kinds if _state(kind, again.get(kind["fingerprint"])) in states]
    return {
        "since": question.range[0],
        "until": question.range[1],
        "grain": question.grain,
        "age_seconds": connection.scalar(stats.AGE),
        "tasks": totals["all_tasks"],
        "other_tasks": totals["other_tasks"],
        "kinds": (totals["matching"] or 0) - (len(kinds) - len(found)),
        "all_kinds": totals["all_kinds"],
        "items": _items(connection, question, found[:limit], again),
    }


def get_error(connection: Connection, question: Question, fingerprint: str) -> Item:
    """Return one kind of error, with its number by the hour or the day.

    Raises:
        NotFound: no failure of it is known.
    """
    kind = _find(connection, question, fingerprint)
    [item] = _items(connection, question, [kind], _seen_again(connection, question, [kind]))
    values = _values(question) | {"fingerprint": fingerprint}
    trend = [dict(row) for row in connection.execute(TREND, values).mappings()]
    return {**item, "since": question.range[0], "until": question.range[1], "grain": question.grain, "trend": trend}


def namespaces_of(connection: Connection, question: Question, fingerprint: str) -> list[str]:
    """Return the namespaces in which a kind of error was counted in a time range; ten at most."""
    values = _values(question) | {"namespace": None, "fingerprint": fingerprint}
    return list(connection.execute(ELSEWHERE, values).scalars())


def find_decision(connection: Connection, namespace: str, fingerprint: str) -> Item | None:
    """Return what was decided about a kind of error; None if it is open."""
    row = connection.execute(FIND, {"namespace": namespace, "fingerprint": fingerprint}).mappings().one_or_none()
    return dict(row) if row else None


def decide(
    connection: Connection, question: Question, fingerprint: str, state: Decision, *, reason: str | None, who: str
) -> Item:
    """Resolve, ignore or reopen a kind of error.

    Raises:
        NotFound: no failure of it is known.
    """
    values = {"namespace": question.filters["namespace"], "fingerprint": fingerprint}
    if find_decision(connection, **values) is None:
        _find(connection, question, fingerprint)
    if state == "open":
        connection.execute(REMOVE, values)
        return {**values, "state": state, **UNDECIDED}
    return {
        **values,
        **connection.execute(STORE, {**values, "state": state, "reason": reason, "who": who}).mappings().one(),
    }


def _kinds(
    connection: Connection, question: Question, states: Collection[State] = STATES, fingerprint: str | None = None
) -> tuple[Item, list[Item]]:
    """Return the totals, and the most frequent kinds that may be in one of the states."""
    decisions = {"resolved" if state == "reopened" else state for state in states}
    values = _values(question) | {"fingerprint": fingerprint, "decisions": sorted(decisions), "most": MOST_JUDGED}
    rows = [dict(row) for row in connection.execute(KINDS, values).mappings()]
    return rows[0], [row for row in rows if row["fingerprint"] is not None]


def _find(connection: Connection, question: Question, fingerprint: str) -> Item:
    """Return a kind of error as `_kinds` does, also if its failures are not in the time range, or not counted yet."""
    if found := _kinds(connection, question, fingerprint=fingerprint)[1]:
        return found[0]
    since = {fingerprint: BEGINNING}
    first, last = (_seen(connection, statement, question, since).get(fingerprint) for statement in (FIRST, LAST))
    if first is None or last is None:
        raise NotFound(f"There is no failure with the fingerprint {fingerprint[:100]!r}. `minion errors` lists them.")
    decided = find_decision(connection, question.filters["namespace"], fingerprint) or {"state": None, **UNDECIDED}
    return {
        "fingerprint": fingerprint, "type": last["type"], "first": first["at"], "last": last["at"], "tasks": 0,
        "all_tasks": 0, "versions": [], **decided, "decision": decided["state"],
    }  # fmt: skip


def _values(question: Question) -> dict[str, Any]:
    return stats.values_of(question) | {"kinds": ["failure"]}


def _seen_again(connection: Connection, question: Question, kinds: Sequence[Item]) -> dict[str, Item]:
    """Return the first failure of each kind since it was resolved."""
    resolved = {kind["fingerprint"]: kind["changed_at"] for kind in kinds if kind["decision"] == "resolved"}
    return _seen(connection, FIRST, question, resolved)


def _items(connection: Connection, question: Question, kinds: Sequence[Item], again: Mapping[str, Item]) -> list[Item]:
    every = {kind["fingerprint"]: BEGINNING for kind in kinds}
    first, last = (_seen(connection, statement, question, every) for statement in (FIRST, LAST))
    names = [kind["fingerprint"] for kind in kinds]
    return [
        _item(kind, first.get(name), last.get(name), again.get(name), WIDTHS[question.grain])
        for name, kind in zip(names, kinds, strict=True)
    ]


def _item(kind: Item, first: Item | None, last: Item | None, again: Item | None, width: timedelta) -> Item:
    """Return a kind of error. If its first or last failure was deleted, the hour of it is known from the counts."""
    is_first_known = first is not None and first["at"] < kind["first"] + width
    return {
        **{name: kind[name] for name in ("fingerprint", "type", "tasks", *UNDECIDED)},
        "message": last and last["message"],
        "share": kind["tasks"] / max(kind["all_tasks"], 1),
        "first_at": first["at"] if first is not None and is_first_known else kind["first"],
        "last_at": max(last["at"], kind["last"]) if last else kind["last"],
        "versions": [each | {"version": each["version"] or None} for each in kind["versions"][:MOST_VERSIONS]],
        "example": last and last["task_id"],
        "state": _state(kind, again),
        "seen_again": again and {name: again[name] for name in ("task_id", "at", "agent", "version")},
    }


def _state(kind: Item, again: Item | None) -> State:
    match kind["decision"]:
        case "resolved":
            return "reopened" if again is not None or kind["last"] > kind["changed_at"] else "resolved"
        case "ignored":
            return "ignored"
    return "open"


def _seen(connection: Connection, statement: Any, question: Question, since: Mapping[str, datetime]) -> dict[str, Item]:
    """Return a failure of each kind after a time: the first or the last one, as the statement says."""
    if not since:
        return {}
    values = stats.values_of(question)
    bounds = {name: values[name] for name in BOUNDS}
    given = {"fingerprints": list(since), "since": list(since.values()), "looked_at": MOST_LOOKED_AT}
    return {row["fingerprint"]: dict(row) for row in connection.execute(statement, bounds | given).mappings()}
