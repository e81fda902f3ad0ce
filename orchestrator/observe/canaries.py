"""The figures of canaries: their ended tasks and those of the versions that they are compared with.

The statistician counts them with everything else that ends, once each. Only tasks that were accepted since the canary
has its share count, so that both versions had the same days and the same callers; and no replays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.observe.bands import Sample
from orchestrator.observe.ends import RANGE
from shared.contracts.shares import share_of
from shared.tasks.trials import FORMAT

FAILURES, COST, SCORE = "failures", "cost", "score "

ANY_OPEN = text("SELECT EXISTS (SELECT FROM canaries WHERE ended_at IS NULL)")
# Cancelled tasks and trials say nothing about a version.
COUNT = text(f"""
    INSERT INTO canary_samples AS s (canary_id, of_canary, measure, count, sum, squares)
        SELECT c.id, t.agent_version_id = c.version_id, m.measure, count(*), sum(m.value), sum(m.value * m.value)
            FROM task_outcomes o JOIN tasks t ON t.id = o.task_id
            JOIN canaries c ON c.ended_at IS NULL AND t.agent_version_id IN (c.version_id, c.baseline_id)
            CROSS JOIN LATERAL (
                SELECT COALESCE(sum(e.cost_microdollars), 0) / 1e6 AS dollars FROM executions e
                    WHERE e.task_id = t.id) AS e
            CROSS JOIN LATERAL (
                VALUES ('{FAILURES}', (o.state <> 'succeeded')::integer::float8), ('{COST}', e.dollars::float8)
            ) AS m (measure, value)
            WHERE {RANGE.format(row="o", moment="finished_at")} AND o.state <> 'cancelled'
              AND t.created_at >= c.started_at AND t.replay_of IS NULL AND t.journal_format <> {FORMAT}
            GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (canary_id, of_canary, measure) DO UPDATE SET count = s.count + EXCLUDED.count,
            sum = s.sum + EXCLUDED.sum, squares = s.squares + EXCLUDED.squares
""")  # noqa: S608 - constants
ADD_SCORE = text(
    """
    INSERT INTO canary_samples AS s (canary_id, of_canary, measure, count, sum, squares)
        SELECT c.id, t.agent_version_id = c.version_id, :measure, 1, CAST(:score AS float8),
               CAST(:score AS float8) * CAST(:score AS float8)
            FROM tasks t JOIN canaries c ON c.ended_at IS NULL AND t.agent_version_id IN (c.version_id, c.baseline_id)
            WHERE t.id = :task AND t.created_at >= c.started_at AND t.replay_of IS NULL
        ON CONFLICT (canary_id, of_canary, measure) DO UPDATE SET count = s.count + 1, sum = s.sum + EXCLUDED.sum,
            squares = s.squares + EXCLUDED.squares
    """
)
SAMPLES = text(
    "SELECT of_canary, measure, count, sum, squares FROM canary_samples WHERE canary_id = :canary ORDER BY measure"
)
# The open canary, or the last one that has ended.
LATEST = text(
    """
    SELECT DISTINCT ON (c.agent_id) c.*, v.number AS version, b.number AS baseline
        FROM canaries c JOIN agent_versions v ON v.id = c.version_id JOIN agent_versions b ON b.id = c.baseline_id
        WHERE c.agent_id = ANY (:agents) ORDER BY c.agent_id, c.id DESC
    """
).bindparams(bindparam("agents", type_=ARRAY(PgUUID(as_uuid=True))))

Figures = dict[str, dict[bool, Sample]]
"""The samples of a canary by measure, and by whether they are of the canary or of the baseline."""


def count(connection: Connection, **values: Any) -> None:
    """Add the ends of a range of transactions to the figures of open canaries."""
    if connection.scalar(ANY_OPEN):
        connection.execute(COUNT, values)


def add_score(connection: Connection, task: UUID, evaluator: str, score: float) -> None:
    """Add the score of a task to the figures of the canary that it belongs to, if there is one."""
    connection.execute(ADD_SCORE, {"task": task, "measure": f"{SCORE}{evaluator}", "score": score})


def figures_of(connection: Connection, canary: UUID) -> Figures:
    """Return the samples of a canary."""
    figures: Figures = defaultdict(lambda: {True: Sample(), False: Sample()})
    for row in connection.execute(SAMPLES, {"canary": canary}).mappings():
        figures[row["measure"]][row["of_canary"]] = Sample(row["count"], row["sum"], row["squares"])
    return figures


def described(figures: Figures) -> dict[str, Any]:
    """Return the figures of both versions for people and programs."""
    return {side: _of_side(figures, side == "canary") for side in ("canary", "baseline")}


def latest(connection: Connection, agents: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """Return the last canary of each agent that had one, with its figures."""
    found = {}
    for row in connection.execute(LATEST, {"agents": list(agents)}).mappings():
        figures = described(figures_of(connection, row["id"]))
        found[row["agent_id"]] = {**row, "share": share_of(row["share"]), "figures": figures}
    return found


def _of_side(figures: Figures, of_canary: bool) -> dict[str, Any]:
    samples = {measure: sides[of_canary] for measure, sides in figures.items()}
    failures, cost = samples.get(FAILURES, Sample()), samples.get(COST, Sample())
    return {
        "tasks": failures.count,
        "failed": round(failures.sum),
        "dollars": round(cost.sum, 6),
        "dollars_per_task": round(cost.mean, 6) if cost.count else None,
        "scores": {
            measure.removeprefix(SCORE): {"tasks": sample.count, "mean": round(sample.mean, 4)}
            for measure, sample in samples.items()
            if measure.startswith(SCORE) and sample.count
        },
    }
