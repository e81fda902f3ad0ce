"""Approvals: beside a sub-agent in the same turn, and of unusual inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from minions.results import wait_for_signal
from minions.testing import MessagesApi, text, tool_use
from shared.contracts.requests import TaskRequest
from shared.database.connections import transaction
from shared.tasks import lifecycle
from tests.integration.agents.conftest import DefineAgent
from tests.integration.agents.test_determinism import RELEASE
from tests.integration.conftest import InlineWorker, Tasks
from workers import minion


def decide(task: UUID, verdict: str, value: Any = None) -> str:
    with transaction() as connection:
        return lifecycle.decide(connection, task, verdict, who="test", value=value).state


@pytest.mark.parametrize("approved_first", [True, False])
def test_sub_agent_and_approval_in_one_turn(
    tasks: Tasks,
    define_agent: DefineAgent,
    messages_api: MessagesApi,
    inline_worker: InlineWorker,
    approved_first: bool,
) -> None:
    define_agent(tools=["help", "checked"])
    messages_api.script = [
        tool_use(("help", {"do": "answer", "answer": 1}), ("checked", {"do": "answer", "answer": 2})),
        text("done"),
    ]
    task = tasks.submit("Agent", "go")
    inline_worker._round()
    assert tasks.get(task)["open_waits"] == 2
    if approved_first:
        assert decide(task, "approve") == "waiting"
    inline_worker._round()
    if not approved_first:
        assert decide(task, "approve") == "pending"
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "done"}


def test_messages_wait_for_approval(
    tasks: Tasks, define_agent: DefineAgent, messages_api: MessagesApi, inline_worker: InlineWorker
) -> None:
    define_agent(config={"approval": True})
    messages_api.script = [text("done")]
    said = [{"role": "user", "content": "Hello"}]
    as_they_are, changed, spoilt = (tasks.submit("Agent", messages=said) for _ in range(3))
    inline_worker._round()
    assert tasks.steps(as_they_are)[0]["input"]["approval"] == said
    decide(as_they_are, "approve")
    decide(changed, "approve", [{"role": "user", "content": "Good day"}])
    decide(spoilt, "approve", "Good day")
    inline_worker.run_all()
    assert [tasks.get(task)["state"] for task in (as_they_are, changed, spoilt)] == ["succeeded", "succeeded", "failed"]
    assert {request["messages"][0]["content"][0]["text"] for request in messages_api.requests} == {"Hello", "Good day"}


def test_input_of_null_waits_for_approval(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> None:
    task = tasks.submit_all([TaskRequest(agent=act(config={"approval": True}), input=None)])[0]
    inline_worker._round()
    assert (tasks.get(task)["wait_reason"], tasks.steps(task)[0]["input"]["approval"]) == ("approval", None)
    assert decide(task, "reject") == "pending"


def run(task: UUID, inline_worker: InlineWorker) -> None:
    """One execution."""
    [message] = [message for message in inline_worker.dispatch() if message.task_id == task]
    minion.run(task, message.claim, inline_worker.id)


def die_while_it_runs(task: UUID, inline_worker: InlineWorker, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One execution whose process dies at a place, and is found to be gone."""

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(KeyboardInterrupt):
            run(task, inline_worker)
    with transaction() as connection:
        connection.execute(RELEASE, {"task": task})


@pytest.mark.parametrize("first", ["careful", "help", "act"])
def test_unsafe_call_waits_for_earlier_calls(
    tasks: Tasks, define_agent: DefineAgent, messages_api: MessagesApi, inline_worker: InlineWorker, first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The contract is not sent before the approval, the sub-agent's answer or the signal has come, and then once,
    though the minion dies before and after it.
    """
    define_agent(tools=["act", "careful", "help", "send"])
    before: dict[str, Any] = {"do": "answer", "answer": 1}
    if first == "act":
        before = {"do": "answer", "answer": wait_for_signal("legal")}
    log = tmp_path / "sent"
    send = ("send", {"log": str(log), "answer": 2})
    messages_api.script = [tool_use((first, before), send, send, ("act", {"answer": 3})), text("done")]
    task = tasks.submit("Agent", "go")
    run(task, inline_worker)
    assert (tasks.get(task)["state"], tasks.get(task)["open_waits"], log.exists()) == ("waiting", 1, False)
    if first == "careful":
        decide(task, "approve")
    elif first == "act":
        with transaction() as connection:
            lifecycle.signal(connection, task, "legal", "yes")
    else:
        [child] = tasks.children(task)
        run(child["id"], inline_worker)
    die_while_it_runs(task, inline_worker, "workers.model_agent.ToolCalls.make", monkeypatch)
    assert not log.exists()
    die_while_it_runs(task, inline_worker, "workers.tool_calls.ToolCalls._result_block", monkeypatch)
    inline_worker.run_all()
    assert (tasks.get(task)["output"], log.read_text().count("\n")) == ({"content": "done"}, 2)
    assert [step["number"] for step in tasks.steps(task)] == list(range(1, len(tasks.steps(task)) + 1))


def test_approvals_of_unsafe_calls_are_asked_in_order(
    tasks: Tasks, define_agent: DefineAgent, messages_api: MessagesApi, inline_worker: InlineWorker, tmp_path: Path
) -> None:
    define_agent()
    log = tmp_path / "log"
    calls = [("careful", {"log": str(log), "answer": answer}) for answer in (1, 2)]
    messages_api.script = [tool_use(*calls), text("done")]
    task = tasks.submit("Agent", "go")
    for made in (0, 1):
        inline_worker._round()
        assert tasks.get(task)["open_waits"] == 1
        assert (log.read_text().count("\n") if log.exists() else 0) == made
        decide(task, "approve")
    inline_worker.run_all()
    assert (tasks.get(task)["state"], log.read_text().count("\n")) == ("succeeded", 2)
