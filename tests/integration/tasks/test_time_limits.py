"""A message cannot change how long a task may run, nor have its claim charged before its time."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import text

from shared.contracts import documents
from shared.contracts.documents import UnreadableDefinition
from shared.errors import FunctionError
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion
from workers.factory import load_blueprint
from workers.heartbeat import WORKER_ID, Heartbeat, LostChild
from workers.meter import Meter

BEGAN = text("UPDATE executions SET started_at = now() - :seconds * interval '1 s' WHERE task_id = :task")
CONFIG = {"soft_time_limit": 20, "time_limit": 30, "max_attempts": 1}


@pytest.mark.parametrize("limits", [[1, 1], [90_000, 86_400], [30, 21], [None, None]])
def test_claim_under_other_limits_is_released_uncharged(
    inline_worker: InlineWorker, tasks: Tasks, act: Any, limits: list[Any]
) -> None:
    task = tasks.submit(act(config=CONFIG), {})
    [message] = inline_worker.dispatch()
    assert minion.run(message.task_id, message.claim, inline_worker.id, limits) == "waiting"
    [execution] = tasks.executions(task)
    assert execution["outcome"] == "handed_back"
    [again] = inline_worker.dispatch()
    assert (
        minion.run(again.task_id, again.claim, inline_worker.id, [again.time_limit, again.soft_time_limit])
        == "succeeded"
    )
    assert tasks.get(task)["attempts"] == 0


@pytest.mark.parametrize(("seconds", "outcome"), [(0.0, "handed_back"), (60.0, "retried")])
def test_soft_limit_while_reading_a_definition_wins(
    inline_worker: InlineWorker, tasks: Tasks, act: Any, monkeypatch: pytest.MonkeyPatch, seconds: float, outcome: str
) -> None:
    """Pydantic makes a fault of the definition of it, which would hand the task to another release."""
    task = tasks.submit(act(config={**CONFIG, "max_attempts": 2}), {})
    [message] = inline_worker.dispatch()
    strikes = iter([SoftTimeLimitExceeded()])

    def struck(model: Any, fields: dict[str, Any], names: Any) -> dict[str, Any]:
        for strike in strikes:
            raise strike
        return fields

    load_blueprint.cache_clear()
    monkeypatch.setattr(documents, "_without_defaults", struck)
    monkeypatch.setattr(Meter, "wall_seconds", lambda meter: seconds)
    minion.run(message.task_id, message.claim, inline_worker.id)
    [execution] = tasks.executions(task)
    assert execution["outcome"] == outcome
    assert tasks.get(task)["attempts"] == int(outcome == "retried")
    assert ("soft_time_limit of 20 s" in str(execution["error"])) == (outcome == "retried")
    with inline_worker.engine.connect() as connection:  # not the pause after which another release may take it
        assert connection.scalar(text("SELECT due_at - now() < interval '5 s' FROM task_status")) is not False


@pytest.mark.parametrize(
    ("again", "state", "reason"),
    [
        (FunctionError("The source does not match its hash.", retryable=False), "failed", None),
        (UnreadableDefinition("It has the unknown field 'x'."), "waiting", "handed_back"),
    ],
)
def test_failure_whose_retry_policy_cannot_be_read_is_recorded(
    inline_worker: InlineWorker, tasks: Tasks, act: Any, monkeypatch: pytest.MonkeyPatch,
    again: Exception, state: str, reason: str | None,
) -> None:  # fmt: skip
    task = tasks.submit(act(), {"do": "fail"})
    [message] = inline_worker.dispatch()

    def unreadable(version: UUID) -> Any:
        raise again

    monkeypatch.setattr(minion, "load_blueprint", unreadable)
    assert minion.run(message.task_id, message.claim, inline_worker.id) == state
    found = tasks.get(task)
    assert (found["state"], found["wait_reason"], found["attempts"]) == (state, reason, 0)
    assert "attempt 1 fails" in tasks.executions(task)[0]["error"]["message"]


@pytest.mark.parametrize(
    ("ran", "at_limit", "state", "outcome"),
    [
        (2, True, "pending", "handed_back"),
        (29, True, "failed", "lost"),
        (2, False, "failed", "lost"),
    ],
)
def test_claim_is_charged_only_for_a_reached_limit(
    inline_worker: InlineWorker,
    tasks: Tasks,
    act: Any,
    heartbeat: Heartbeat,
    ran: int,
    at_limit: bool,
    state: str,
    outcome: str,
) -> None:
    task: UUID = tasks.submit(act(config=CONFIG), {})
    [message] = inline_worker.dispatch()
    claimed = minion.claim_task(message.task_id, message.claim, WORKER_ID)
    assert claimed is not None
    with inline_worker.engine.begin() as connection:
        connection.execute(BEGAN, {"seconds": ran, "task": task})
    heartbeat._give_back(LostChild(task, claimed.claim, "killed", charged=True, at_limit=at_limit))
    assert tasks.get(task)["state"] == state
    assert [execution["outcome"] for execution in tasks.executions(task)] == [outcome]
