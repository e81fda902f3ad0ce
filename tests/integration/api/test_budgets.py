"""Budgets over HTTP: given with a task, shown with it, raised and stopped."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from minions import Client, errors
from orchestrator.cli import app as cli
from tests.integration.conftest import InlineWorker, Tasks


def test_a_task_waits_until_its_budget_is_raised(
    client: Client, act: Any, inline_worker: InlineWorker, tasks: Tasks
) -> None:
    act("First")
    task = client.submit("First", {}, budget={"tokens": 10, "steps": 1, "seconds": 0.000001})
    assert task.budget is not None
    assert task.budget["tokens"] == {"limit": 10, "spent": 0, "reserved": 0}
    inline_worker._round()
    assert client.why(task.id)["reason"] == "budget"
    raised = client.change_budget(task.id, add_seconds=60)
    assert (raised.id, raised.state) == (task.id, "pending")
    inline_worker.run_all()
    assert client.get(task.id).state == "succeeded"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({}, "give add_tokens, add_dollars, add_steps or add_seconds, or else `stop`"),
        ({"add_tokens": 1, "stop": True}, "or else `stop`"),
        ({"add_tokens": 0}, "add_tokens"),
        ({"add_tokens": "1"}, "add_tokens"),
        ({"tokens": 1}, "tokens: Extra inputs"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    http: httpx2.Client, act: Any, tasks: Tasks, body: Any, fault: str
) -> None:
    act()
    task = tasks.submit("Act", {})
    answer = http.post(f"/v1/tasks/{task}/budget", json=body)
    assert (answer.status_code, fault in answer.json()["detail"]) == (422, True), answer.text


def test_invalid_raise_of_budget_is_refused(client: Client, act: Any, tasks: Tasks) -> None:
    act()
    with pytest.raises(errors.Conflict, match="does not have its own budget, and does not wait for one"):
        client.change_budget(tasks.submit("Act", {}), add_tokens=1)
    with pytest.raises(errors.Conflict, match="has no limit in dollars"):
        client.change_budget(client.submit("Act", {}, budget={"steps": 1}).id, add_dollars=1)
    with pytest.raises(errors.NotFound):
        client.change_budget("00000000-0000-7000-8000-000000000000", stop=True)
    with pytest.raises(errors.InvalidInput, match=r"budget\.tokens"):
        client.submit("Act", {}, budget={"tokens": -1})
    with pytest.raises(errors.InvalidInput, match="a budget must limit something"):
        client.submit("Act", {}, budget={"on_breach": "fail"})


def test_the_command_shows_raises_and_stops(client: Client, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.commands.budgets.connect", lambda *_: nullcontext(client))
    monkeypatch.setattr("orchestrator.commands.tasks.connect", lambda *_: nullcontext(client))
    act()

    def run_cli(*words: str) -> str:
        result = CliRunner().invoke(cli, list(words), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    task = client.submit("Act", {}, budget={"dollars": 0.5}).id
    assert "dollars  0.5" in run_cli("budget", task)
    assert '"limit": 0.75' in run_cli("budget", task, "--add-dollars", "0.25", "--json")
    assert "on breach: fail" in run_cli("budget", task, "--stop")
    submitted = run_cli("submit", "Act", "{}", "--budget", '{"steps": 7}', "--json")
    assert '"limit": 7' in submitted
