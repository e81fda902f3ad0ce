"""Trials over HTTP: tasks that run against a recording, with no effect on the world."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from orchestrator.api import body, problems
from orchestrator.api.auth import Caller
from orchestrator.api.base_path import link
from orchestrator.api.parameters import Database
from orchestrator.api.task_models import Task
from shared.contracts.recording import Level, parse_recording
from shared.contracts.requests import Budget, LabelName, LabelValue
from shared.contracts.strict_json import check_size
from shared.contracts.strict_model import Strict
from shared.database.connections import autocommit
from shared.settings import get_settings
from shared.tasks import queries, trials
from shared.tasks.records import NewTask
from shared.tasks.trials import Trial

router = APIRouter(prefix="/v1/trials", tags=["trials"])


class TrialRequest(Strict):
    """A recording, and the version of an agent that runs against it."""

    agent: str | None = Field(None, max_length=200, description="By default the agent of the recording.")
    version: int | None = Field(None, ge=1, le=2**31 - 1, description="By default the active one.")
    level: Level = Field(
        description="`replay`: nothing is called, every step must be the recorded one. `shadow`: the model is called, "
        "and tools have their recorded results."
    )
    allow_idempotent: bool = Field(
        False,
        description="At the level `shadow`, make idempotent calls that were not recorded. Without it only pure ones "
        "are made. Unsafe ones never are: the task ends before them.",
    )
    recording: dict[str, Any] = Field(
        description="The `task` of a case that `minion record` wrote: its input or messages, steps and outcome."
    )
    labels: dict[LabelName, LabelValue] = Field({}, max_length=64)
    budget: Budget | None = None
    namespace: str = Field("default", min_length=1, max_length=100)


@router.post(
    "",
    name="submit_trial",
    status_code=201,
    response_model=Task,
    responses=problems.documented(404, 409, 413, 415),
    openapi_extra=body.documented(TrialRequest.model_json_schema()),
)
def evaluate(sent: body.BulkBody, database: Database, response: Response, key: Caller) -> dict[str, Any]:
    """Accepts a task that runs against a recording. It is an ordinary task, on the same workers, with its budget, and
    what the model used is paid for. It has no conversation and no tenant key, sends no webhooks, and cannot be
    replayed. The tasks below it are trials too."""
    asked = body.parse_model(TrialRequest, sent)
    recording = parse_recording(asked.recording)
    namespace = key.scope.namespace_of(asked.namespace if "namespace" in asked.model_fields_set else None)
    limit = get_settings().max_input_bytes
    check_size(recording.input, what="The recorded input", limit=limit)
    check_size(recording.messages, what="The recorded list of messages", limit=limit)
    task: NewTask = {
        "agent": asked.agent or recording.agent,
        "namespace": namespace,
        "labels": asked.labels,
        "submitted_by": key.submitter,
        "submitter_key": key.identity,
    }
    if recording.messages is None:
        task["input"] = recording.input
    else:
        task["messages"] = recording.messages
    if asked.budget is not None:
        task["budget"] = asked.budget.model_dump(mode="json", exclude_none=True)
    with database.begin() as connection:
        if asked.version is not None:
            version = trials.version_of(connection, namespace, task["agent"], asked.version)
            task["agent_version_id"] = str(version)
        against = Trial(asked.level, asked.allow_idempotent, recording)
        accepted = trials.submit(connection, task, against, scope=key.scope)
    response.headers["Location"] = link(f"/v1/tasks/{accepted.task_id}")
    with autocommit(database).connect() as connection:
        return queries.get_task(connection, accepted.task_id)
