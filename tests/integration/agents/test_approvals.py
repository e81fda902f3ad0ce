"""What somebody has to approve: beside a sub-agent in the same turn, and where it is no ordinary input."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from minions.testing import MessagesApi, text, tool_use
from shared import lifecycle
from shared.database import transaction
from shared.schemas import TaskRequest
from tests.integration.agents.conftest import DefineAgent
from tests.integration.conftest import Minion, Tasks


def decide(task: UUID, verdict: str, value: Any = None) -> str:
    with transaction() as connection:
        return lifecycle.decide(connection, task, verdict, who="test", value=value)


@pytest.mark.parametrize("approved_first", [True, False])
def test_a_sub_agent_and_a_person(
    tasks: Tasks, agent: DefineAgent, api: MessagesApi, here: Minion, approved_first: bool
) -> None:
    agent()
    api.script = [
        tool_use(("help", {"do": "answer", "answer": 1}), ("careful", {"do": "answer", "answer": 2})),
        text("done"),
    ]
    task = tasks.submit("Agent", "go")
    here._round()
    assert tasks.get(task)["open_waits"] == 2
    if approved_first:
        assert decide(task, "approve") == "waiting"
    here._round()
    if not approved_first:
        assert decide(task, "approve") == "pending"
    here.run_all()
    assert tasks.get(task)["output"] == {"content": "done"}


def test_messages_that_somebody_has_to_approve(
    tasks: Tasks, agent: DefineAgent, api: MessagesApi, here: Minion
) -> None:
    agent(config={"approval": True})
    api.script = [text("done")]
    said = [{"role": "user", "content": "Hello"}]
    as_they_are, changed, spoilt = (tasks.submit("Agent", messages=said) for _ in range(3))
    here._round()
    assert tasks.steps(as_they_are)[0]["input"]["approval"] == said
    decide(as_they_are, "approve")
    decide(changed, "approve", [{"role": "user", "content": "Good day"}])
    decide(spoilt, "approve", "Good day")
    here.run_all()
    assert [tasks.get(task)["state"] for task in (as_they_are, changed, spoilt)] == ["succeeded", "succeeded", "failed"]
    assert {request["messages"][0]["content"][0]["text"] for request in api.requests} == {"Hello", "Good day"}


def test_an_input_of_null_that_somebody_has_to_approve(tasks: Tasks, act: Any, here: Minion) -> None:
    task = tasks.submit_all([TaskRequest(agent=act(config={"approval": True}), input=None)])[0]
    here._round()
    assert (tasks.get(task)["wait_reason"], tasks.steps(task)[0]["input"]["approval"]) == ("approval", None)
    assert decide(task, "reject") == "pending"
