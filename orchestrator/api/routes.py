"""Routing over HTTP, without a task: the agent that a message would go to, and the scores of the others."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import body, problems
from orchestrator.api.parameters import Namespace, Statements
from orchestrator.preparer import route_message
from shared.errors import AmbiguousRoute
from shared.tasks.routing import ranked

router = APIRouter(prefix="/v1/routes", tags=["agents"])


class RouteRequest(BaseModel):
    """The last message of a task that names no agent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: str = Field(min_length=1, max_length=10_000, description="Routing reads 10,000 characters.")


class Score(BaseModel):
    """How well the name, the capabilities and the description of an agent fit the words of the message."""

    agent: str
    score: float


class Route(BaseModel):
    """The decision that a task would get."""

    agent: str | None = Field(description="Null: the task would fail, for the reason in `problem`.")
    by: str = Field(description="`text`: the words of the message decide. `setting`: MINION_ROUTING_AGENT does.")
    problem: str | None
    scores: list[Score] = Field(description="Of the ten agents that fit best, the best first.")


@router.post(
    "",
    response_model=Route,
    responses=problems.documented(413, 415),
    openapi_extra=body.documented(RouteRequest.model_json_schema()),
)
def find_route(query: Namespace, sent: body.SmallBody, database: Statements) -> dict[str, Any]:
    """Says which agent a message would go to, and by which scores. It submits nothing."""
    message = body.parse_model(RouteRequest, sent).message
    with database.connect() as connection:
        scores = ranked(connection, message, namespace=query.namespace)
        try:
            route = route_message(connection, message, query.namespace)
        except AmbiguousRoute as error:
            found = {"agent": None, "by": "text", "problem": error.message}
        else:
            found = {"agent": route.agent, "by": route.by, "problem": None}
    return {**found, "scores": [{"agent": agent, "score": score} for agent, score in scores.items()]}
