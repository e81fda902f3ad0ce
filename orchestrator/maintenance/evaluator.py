"""The evaluator: submits a judging task for each chosen task, and records its score.

A chosen task is a row, so an orchestrator that dies loses none. Each submission and each score is one transaction with
the change of its row. Any number of orchestrators may do this.
"""

from __future__ import annotations

import json
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, RowMapping, text

from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.observe import evaluations
from shared.contracts.content import FILE
from shared.contracts.requests import TaskRequest
from shared.errors import MinionError
from shared.settings import Settings, get_settings
from shared.tasks import submission
from shared.tasks.queries import get_task, list_step_summaries

log = structlog.get_logger(__name__)

BATCH = 50
MOST_STEPS = 200
DECIMALS = 6
"""Of a score."""
PRIORITY = -10
"""Live work comes first."""
OUTLINE = ("number", "kind", "name", "status", "started_at", "finished_at", "cost_microdollars", "error")
SHOWN = ("agent", "agent_version", "input", "messages", "output")
SHRUNK = ("steps", "messages", "input", "output")

DUE = text(
    """
    SELECT e.task_id, e.evaluator, e.agent_version_id, e.max_per_hour, e.budget, t.namespace, t.key, v.name AS agent,
           r.conversation_id
        FROM evaluations e JOIN tasks t ON t.id = e.task_id JOIN tasks r ON r.id = t.root_id
        JOIN agent_versions v ON v.id = e.agent_version_id
        WHERE e.state = 'due' ORDER BY e.task_id, e.evaluator LIMIT 1 FOR UPDATE OF e SKIP LOCKED
    """
)
IN_THE_LAST_HOUR = text(
    "SELECT count(*) FROM evaluations WHERE agent_version_id = :version AND evaluator = :evaluator "
    "AND submitted_at > now() - interval '1 hour'"
)
SUBMITTED = text(
    "UPDATE evaluations SET state = 'submitted', judge_task_id = :judge, submitted_at = now(), problem = NULL "
    "WHERE task_id = :task AND evaluator = :evaluator"
)
ENDED = text(
    """
    SELECT e.task_id, e.evaluator, e.agent_version_id, e.judge_task_id, o.state, COALESCE(o.output, c.value) AS output
        FROM evaluations e LEFT JOIN tasks j ON j.id = e.judge_task_id
        LEFT JOIN task_outcomes o ON o.task_id = j.id LEFT JOIN contents c ON c.sha256 = o.output_sha256
        WHERE e.state = 'submitted' AND (j.id IS NULL OR o.task_id IS NOT NULL)
        ORDER BY e.task_id, e.evaluator LIMIT :most FOR UPDATE OF e SKIP LOCKED
    """
)
CLOSE = text(
    "UPDATE evaluations SET state = :state, score = :score, passed = :passed, problem = :problem "
    "WHERE task_id = :task AND evaluator = :evaluator"
)


class Evaluator(Loop):
    """Has chosen tasks judged."""

    name = "evaluator"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine

    def run_once(self) -> float:
        """Submit some judging tasks, and record the scores of those that have ended."""
        submitted = 0
        while submitted < BATCH and not self.stopping.is_set():
            with self.engine.begin() as connection:
                if not submit_next(connection):
                    break
            submitted += 1
        with self.engine.begin() as connection:
            recorded = record_scores(connection)
        return 0.0 if BATCH in (submitted, recorded) else seconds_within_lease(self.settings)


def submit_next(connection: Connection) -> bool:
    """Submit the judging task of the next chosen task. Return whether there was one."""
    row = connection.execute(DUE).mappings().one_or_none()
    if row is None:
        return False
    values = {"version": row["agent_version_id"], "evaluator": row["evaluator"]}
    if row["max_per_hour"] and connection.execute(IN_THE_LAST_HOUR, values).scalar_one() >= row["max_per_hour"]:
        _close(connection, row, "skipped", problem=f"There were {row['max_per_hour']} evaluations in the last hour.")
        return True
    try:
        with connection.begin_nested():
            request = TaskRequest.parse(judging(connection, row))
            by = f"{evaluations.SUBMITTER}{row['agent']}"
            [accepted] = submission.submit_within(connection, [request], submitted_by=by)
    except MinionError as error:
        log.warning("evaluation_refused", task=str(row["task_id"]), evaluator=row["evaluator"], reason=error.message)
        _close(connection, row, "failed", problem=error.message)
        return True
    key = {"task": row["task_id"], "evaluator": row["evaluator"]}
    connection.execute(SUBMITTED, {**key, "judge": accepted.task_id})
    return True


def judging(connection: Connection, row: RowMapping) -> dict[str, Any]:
    """Return the request for a judging task: of the same tenant, so that erasing a tenant erases it too."""
    labels = {"evaluates": str(row["task_id"])}
    if row["conversation_id"] is not None:
        labels["evaluates_conversation"] = row["conversation_id"]
    request = {
        "agent": row["evaluator"],
        "namespace": row["namespace"],
        "key": row["key"],
        "input": subject(connection, row),
        "labels": labels,
        "priority": PRIORITY,
        "budget": row["budget"] and {**row["budget"], "on_breach": "fail"},
    }
    return {name: value for name, value in request.items() if value is not None}


def subject(connection: Connection, row: RowMapping) -> dict[str, Any]:
    """Return what a judge sees of a task. All of it is data that callers, models and tools wrote."""
    task = get_task(connection, row["task_id"])
    steps = list_step_summaries(connection, row["task_id"], limit=MOST_STEPS).items
    seen: dict[str, Any] = {"task_id": str(row["task_id"])} | {name: task[name] for name in SHOWN}
    seen["steps"] = [{name: step[name] for name in OUTLINE if step.get(name) is not None} for step in steps]
    return _shrunk(json.loads(json.dumps(seen, default=str), object_hook=_without_files))


def record_scores(connection: Connection) -> int:
    """Record the scores of judging tasks that have ended; return how many there were."""
    rows = connection.execute(ENDED, {"most": BATCH}).mappings().all()
    for row in rows:
        verdict = verdict_in(row["output"]) if row["state"] == "succeeded" else None
        if verdict is None:
            _close(connection, row, "failed", problem=_problem(row))
            continue
        score, passed = verdict
        evaluations.add(connection, row["task_id"], row["agent_version_id"], row["evaluator"], score, passed=passed)
        _close(connection, row, "scored", score=score, passed=passed)
    return len(rows)


def verdict_in(output: Any) -> tuple[float, bool | None] | None:
    """Return the score in a judge's output, and whether the task passed; None if no score is between 0 and 1."""
    if not isinstance(output, dict):
        return None
    score, passed = output.get("score"), output.get("passed")
    if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1:
        return None
    # PostgreSQL refuses the square of 1e-300.
    return round(float(score), DECIMALS), passed if isinstance(passed, bool) else None


def _problem(row: RowMapping) -> str:
    if row["state"] is None:
        return "The judging task was deleted before its score was read."
    if row["state"] != "succeeded":
        return f"The judging task {row['judge_task_id']} ended as {row['state']}."
    return f"The output of the judging task {row['judge_task_id']} has no `score` between 0 and 1."


def _close(
    connection: Connection,
    row: RowMapping,
    state: str,
    *,
    score: float | None = None,
    passed: bool | None = None,
    problem: str | None = None,
) -> None:
    result = {"state": state, "score": score, "passed": passed, "problem": problem}
    connection.execute(CLOSE, {"task": row["task_id"], "evaluator": row["evaluator"], **result})


def _without_files(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part in which files are only named: a model must not attach a file to the judging task, which may belong
    to another tenant.
    """
    return {"file" if name == FILE else name: value for name, value in part.items()}


def _shrunk(seen: dict[str, Any]) -> dict[str, Any]:
    """Return what a judge sees, within the limit of an input: large parts are left out, the steps first."""
    limit = get_settings().max_input_bytes * 3 // 4
    for name in SHRUNK:
        if len(json.dumps(seen)) > limit:
            seen = {**seen, name: {"left_out_bytes": len(json.dumps(seen[name]))}}
    return seen
