"""Evaluations over HTTP: have tasks judged that have ended."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, Field, StringConstraints
from sqlalchemy import Connection, RowMapping

from orchestrator.api import body, problems
from orchestrator.api.actors import Actor
from orchestrator.api.agents import find
from orchestrator.api.parameters import Database
from orchestrator.observe.evaluations import Wanted, choose
from shared.access.scope import Scope
from shared.audit import log
from shared.contracts.shares import Share, hundredths_of
from shared.contracts.strict_model import Strict
from shared.errors import Conflict, InvalidInput, UnknownAgent

Named = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]

LEAST_DOLLARS = 1e-6
"""Of a budget."""

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])


class EvaluationRequest(Strict):
    """Succeeded tasks of an agent to be judged, the newest first, without those that the evaluator has judged."""

    namespace: Named = "default"
    agent: Named
    evaluator: Named = Field(description="The agent that judges: its output has a `score` between 0 and 1.")
    since: AwareDatetime = Field(strict=False)
    until: AwareDatetime | None = Field(None, strict=False, description="Now by default.")
    version: int | None = Field(None, ge=1, le=2**31 - 1)
    share: Share = "100%"
    limit: int = Field(100, ge=1, le=10_000)
    dollars: float = Field(gt=0, le=1_000_000, description="For all: each judging task may spend the same part of it.")


class Evaluations(BaseModel):
    """The tasks that will be judged. Their scores are in the versions of the agent."""

    tasks: int
    dollars_per_task: float | None


def _reached(connection: Connection, scope: Scope, namespace: str, name: str) -> RowMapping:
    agent = find(connection, scope, namespace, name)
    if agent is None:
        raise UnknownAgent(f"There is no agent named {name!r}. `minion agents` lists them.")
    return agent


def _check_judge(agent: RowMapping) -> None:
    """Refuse an agent that cannot judge, before it is paid for it."""
    name, schema = agent["name"], agent["definition"].get("output_schema")
    if agent["status"] == "disabled":
        raise Conflict(f"The agent {name!r} is disabled and accepts no tasks. Activate it first.")
    if schema is not None and "score" not in schema.get("properties", {"score": True}):
        raise InvalidInput(f"The output schema of {name!r} must have the property `score`, between 0 and 1.")


@router.post(
    "",
    name="evaluate_tasks",
    status_code=202,
    response_model=Evaluations,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(EvaluationRequest.model_json_schema()),
)
def evaluate(sent: body.SmallBody, database: Database, actor: Actor) -> Evaluations:
    """Has tasks judged that have ended. The evaluator gets the input, the output and the outline of the steps of each,
    in a task of the same tenant. Its scores count for the version that did the work."""
    asked = body.parse_model(EvaluationRequest, sent)
    namespace = actor.key.scope.namespace_of(asked.namespace if "namespace" in asked.model_fields_set else None)
    until = asked.until or datetime.now(UTC)
    if asked.since >= until:
        raise InvalidInput("Invalid time range: `since` must be before `until`.")
    if asked.agent == asked.evaluator:
        raise InvalidInput("An agent must not evaluate itself: name another `evaluator`.")
    wanted = Wanted(
        namespace=namespace,
        agent=asked.agent,
        evaluator=asked.evaluator,
        since=asked.since,
        until=until,
        dollars=asked.dollars,
        version=asked.version,
        share=hundredths_of(asked.share),
        most=asked.limit,
    )
    with database.begin() as connection:
        _reached(connection, actor.key.scope, namespace, asked.agent)
        _check_judge(_reached(connection, actor.key.scope, namespace, asked.evaluator))
        tasks = choose(connection, wanted)
        if tasks and asked.dollars / tasks < LEAST_DOLLARS:
            raise InvalidInput(
                f"{asked.dollars:g} dollars are too few for {tasks} tasks. Raise them, or lower `limit`."
            )
        facts = {"evaluator": asked.evaluator, "since": asked.since, "tasks": tasks, "dollars": asked.dollars}
        log.record(connection, actor, "evaluation.start", asked.agent, namespace=namespace, after=facts)
    return Evaluations(tasks=tasks, dollars_per_task=asked.dollars / tasks if tasks else None)
