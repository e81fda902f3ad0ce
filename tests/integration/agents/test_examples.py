"""The example of refunds against the local Messages API: tools, an approval, a chain and a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions.testing import MessagesApi
from shared.contracts.requests import BudgetChange
from shared.database.connections import transaction
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from shared.tasks import budgets, lifecycle
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.model_client import use_messages_api
from tests.support.processes import ROOT, wait_until

FOLDER = ROOT / "examples" / "refunds"
COMPLAINT = {"order": "A-17", "complaint": "It arrived broken"}
BOOKED = {"order": "A-17", "receipt": "R-A-17-30"}


@pytest.fixture
def messages_api(
    monkeypatch: pytest.MonkeyPatch, database: Engine, inline_worker: InlineWorker
) -> Iterator[MessagesApi]:
    """The local server with the replies of the example, whose agents are stored and served by this process."""
    with Session(database) as session:
        store_definitions(session, load(FOLDER / "refunds.yaml"))
    with transaction() as connection:
        connection.execute(text("UPDATE workers SET capabilities = capabilities || '{refunds}'"))
    script = json.loads((FOLDER / "replies.json").read_text())
    with use_messages_api(MessagesApi(script=script), monkeypatch) as server:
        yield server


def until_it_waits(tasks: Tasks, inline_worker: InlineWorker, task: UUID, reason: str) -> dict[str, Any]:
    """Runs what is due until the task waits for that."""

    def waits() -> bool:
        inline_worker._round()
        return bool(tasks.get(task)["wait_reason"] == reason)

    wait_until(waits, f"it waits: {reason}")
    return tasks.get(task)


def approve(task: UUID) -> None:
    with transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="test")


def test_agent_with_tool_that_needs_approval(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    task = tasks.submit("refund-desk", COMPLAINT)
    until_it_waits(tasks, inline_worker, task, "approval")
    approve(task)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == BOOKED
    assert len(messages_api.requests) == 3


def test_a_chain(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
    task = tasks.submit("settle-complaint", COMPLAINT)
    until_it_waits(tasks, inline_worker, task, "subtask")
    wait_until(lambda: inline_worker._round() or tasks.children(task)[0]["wait_reason"] == "approval", "the desk waits")
    approve(tasks.children(task)[0]["id"])
    inline_worker.run_all()
    assert "R-A-17-30" in tasks.get(task)["output"]["content"]


def test_a_budget_that_is_too_small(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
    task = tasks.submit("refund-desk", COMPLAINT, budget={"dollars": 0.01})
    until_it_waits(tasks, inline_worker, task, "budget")
    assert messages_api.requests == []
    with transaction() as connection:
        budgets.change(connection, task, BudgetChange(add_dollars=1.0))
    until_it_waits(tasks, inline_worker, task, "approval")
    approve(task)
    inline_worker.run_all()
    assert tasks.get(task)["output"] == BOOKED
