"""Tasks to evaluate: chosen when they end, or later by a person; and the scores of each agent version.

The statistician chooses among the ends that it counts, in the same transaction, so each task is considered once. What a
judge does is never evaluated, so that judges cannot judge each other in a circle. Trials are not evaluated either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.observe.canaries import add_score
from orchestrator.observe.ends import RANGE
from shared.tasks.queries import first_id_at
from shared.tasks.trials import FORMAT

SUBMITTER = "evaluator:"
MOST_UNSCORED = 1000
"""Evaluations without a score that are counted for one version: the latest."""

ANY = text("SELECT EXISTS (SELECT FROM agent_versions WHERE evaluators IS NOT NULL)")
SAMPLE = text(f"""
    INSERT INTO evaluations (task_id, evaluator, agent_version_id, max_per_hour, budget)
        SELECT t.id, e.value->>'agent', v.id, (e.value->>'max_per_hour')::integer, e.value->'budget'
            FROM task_outcomes o JOIN tasks t ON t.id = o.task_id
            JOIN agent_versions v ON v.id = t.agent_version_id AND v.evaluators IS NOT NULL
            CROSS JOIN LATERAL jsonb_array_elements(v.evaluators) AS e
            WHERE {RANGE.format(row="o", moment="finished_at")} AND o.state = 'succeeded'
              AND t.journal_format <> {FORMAT} AND NOT starts_with(COALESCE(t.submitted_by, ''), '{SUBMITTER}')
              AND minion_drawn(t.id, e.value->>'agent', (e.value->>'share')::integer)
        ON CONFLICT DO NOTHING
""")  # noqa: S608 - constants
CHOOSE = text(f"""
    WITH chosen AS (
        SELECT t.id, t.agent_version_id FROM tasks t JOIN task_outcomes o ON o.task_id = t.id
            WHERE t.namespace = :namespace AND t.agent_name = :agent AND t.id >= :first AND t.id < :last
              AND o.state = 'succeeded' AND t.journal_format <> {FORMAT}
              AND NOT starts_with(COALESCE(t.submitted_by, ''), '{SUBMITTER}')
              AND (CAST(:version AS integer) IS NULL OR :version = (
                    SELECT v.number FROM agent_versions v WHERE v.id = t.agent_version_id))
              AND minion_drawn(t.id, :evaluator, :share)
              AND NOT EXISTS (SELECT FROM evaluations e WHERE e.task_id = t.id AND e.evaluator = :evaluator
                                  AND e.state IN ('due', 'submitted', 'scored'))
            ORDER BY t.id DESC LIMIT :most
    ), split AS (
        SELECT jsonb_build_object('dollars', trunc(CAST(:dollars AS numeric) / GREATEST(count(*), 1), 6)) AS budget
            FROM chosen
    )
    INSERT INTO evaluations AS e (task_id, evaluator, agent_version_id, budget)
        SELECT c.id, :evaluator, c.agent_version_id, s.budget FROM chosen c, split s
        ON CONFLICT (task_id, evaluator) DO UPDATE SET state = 'due', max_per_hour = NULL, budget = EXCLUDED.budget
            WHERE e.state IN ('failed', 'skipped')
        RETURNING task_id
""")  # noqa: S608 - constants
ADD = text(
    """
    INSERT INTO evaluation_scores AS s (agent_version_id, evaluator, count, sum, squares, passed, judged)
        VALUES (:version, :evaluator, 1, :score, CAST(:score AS float8) * :score,
                COALESCE(CAST(:passed AS boolean), false)::integer, (CAST(:passed AS boolean) IS NOT NULL)::integer)
        ON CONFLICT (agent_version_id, evaluator) DO UPDATE SET count = s.count + 1, sum = s.sum + EXCLUDED.sum,
            squares = s.squares + EXCLUDED.squares, passed = s.passed + EXCLUDED.passed,
            judged = s.judged + EXCLUDED.judged
    """
)
SCORES = text(
    """
    SELECT agent_version_id, evaluator, count, sum / count AS mean, passed, judged FROM evaluation_scores
        WHERE agent_version_id = ANY (:versions) ORDER BY evaluator
    """
).bindparams(bindparam("versions", type_=ARRAY(PgUUID(as_uuid=True))))
UNSCORED = text(f"""
    SELECT v.id, e.evaluator, count(*) FILTER (WHERE e.state = 'failed') AS failed,
           count(*) FILTER (WHERE e.state = 'skipped') AS skipped,
           (array_agg(e.problem ORDER BY e.task_id DESC))[1] AS problem
        FROM unnest(:versions) AS v (id) CROSS JOIN LATERAL (
            SELECT task_id, evaluator, state, problem FROM evaluations
                WHERE agent_version_id = v.id AND state IN ('failed', 'skipped')
                ORDER BY task_id DESC LIMIT {MOST_UNSCORED}
        ) AS e GROUP BY v.id, e.evaluator ORDER BY e.evaluator
""").bindparams(bindparam("versions", type_=ARRAY(PgUUID(as_uuid=True))))  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Old tasks to evaluate, the newest first, without those that the evaluator has judged.

    Attributes:
        share: of them, in hundredths of a percent.
        dollars: for all judging tasks together: each may spend the same part of it.
    """

    namespace: str
    agent: str
    evaluator: str
    since: datetime
    until: datetime
    dollars: float
    version: int | None = None
    share: int
    most: int


def sample(connection: Connection, **values: Any) -> None:
    """Choose tasks to evaluate among the ends of a range of transactions."""
    if connection.scalar(ANY):
        connection.execute(SAMPLE, values)


def choose(connection: Connection, wanted: Wanted) -> int:
    """Choose old tasks to evaluate; return how many."""
    values = {name: getattr(wanted, name) for name in Wanted.__slots__ if name not in ("since", "until")}
    times = {"first": first_id_at(wanted.since), "last": first_id_at(wanted.until)}
    return len(connection.execute(CHOOSE, {**values, **times}).all())


def add(
    connection: Connection, task: UUID, version: UUID, evaluator: str, score: float, *, passed: bool | None
) -> None:
    """Add a score to those of its agent version, and to the figures of a canary."""
    about = {"version": version, "evaluator": evaluator, "score": score, "passed": passed}
    connection.execute(ADD, about)
    add_score(connection, task, evaluator, score)


def scores_of(connection: Connection, versions: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """Return the scores of agent versions by evaluator: `tasks`, `mean`, and `passed` if the judge says so."""
    found: dict[UUID, dict[str, Any]] = {}
    for row in connection.execute(SCORES, {"versions": list(versions)}).mappings():
        passed = row["passed"] / row["judged"] if row["judged"] else None
        score = {"tasks": row["count"], "mean": round(row["mean"], 4), "passed": passed}
        found.setdefault(row["agent_version_id"], {})[row["evaluator"]] = score
    return found


def unscored_of(connection: Connection, versions: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """Return the evaluations of agent versions that have no score, by evaluator: how many `failed` or were `skipped`
    of the latest `MOST_UNSCORED` of a version, and the `problem` of the latest one.
    """
    found: dict[UUID, dict[str, Any]] = {}
    for row in connection.execute(UNSCORED, {"versions": list(versions)}).mappings():
        facts = {name: row[name] for name in ("failed", "skipped", "problem")}
        found.setdefault(row["id"], {})[row["evaluator"]] = facts
    return found
