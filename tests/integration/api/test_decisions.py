"""People in the loop: calls that somebody has to approve, and steps of which nobody knows whether they happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from shared.explain import explain
from tests.conftest import Define
from tests.integration.conftest import ACT, Minion, Tasks


@pytest.fixture
def careful(define: Define) -> str:
    """An agent whose tool needs approval."""
    define(
        {**ACT, "effect": "unsafe", "approval": True},
        {"kind": "agent", "name": "Careful", "type": "function", "tool": "act", "config": {"capabilities": ["work"]}},
    )
    return "Careful"


def test_an_approved_call_is_made_once(
    client: Client, tasks: Tasks, careful: str, here: Minion, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    log.touch()
    task = tasks.submit(careful, {"do": "answer", "answer": 1, "log": str(log)})
    here._round()
    waiting = tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"], log.read_text()) == ("waiting", "approval", "")
    why = client.why(task)
    assert why["facts"]["proposed"]["answer"] == 1
    assert "Somebody has to approve act with" in why["sentence"]
    assert client.decide(task, "approve", reason="fine").state == "pending"
    here.run_all()
    assert tasks.get(task)["output"] == 1
    assert log.read_text().count("\n") == 1
    [decision, call] = tasks.steps(task)
    assert (decision["output"]["verdict"], decision["output"]["by"], decision["output"]["reason"]) == (
        "approve",
        "api",
        "fine",
    )
    assert call["kind"] == "tool_call"


def test_other_arguments_than_proposed(client: Client, tasks: Tasks, careful: str, here: Minion) -> None:
    task = tasks.submit(careful, {"do": "answer", "answer": "too much"})
    here._round()
    client.decide(task, "approve", value={"do": "answer", "answer": "less"})
    here.run_all()
    assert tasks.get(task)["output"] == "less"
    assert tasks.steps(task)[1]["input"]["arguments"] == {"do": "answer", "answer": "less"}


def test_a_rejected_call_is_not_made(client: Client, tasks: Tasks, careful: str, here: Minion) -> None:
    task = tasks.submit(careful, {})
    here._round()
    client.decide(task, "reject", reason="not today")
    here.run_all()
    ended = tasks.get(task)
    assert ended["state"] == "failed"
    assert ended["error"]["message"] == "act was rejected: not today."
    with pytest.raises(errors.Conflict, match="waits for no decision"):
        client.decide(task, "approve")


def test_nobody_answers_in_time(tasks: Tasks, define: Define, here: Minion) -> None:
    config = {"capabilities": ["work"]}
    define(
        {**ACT, "approval": True, "approval_timeout": 0.05},
        {"kind": "agent", "name": "Careful", "type": "function", "tool": "act", "config": config},
    )
    task = tasks.submit("Careful", {})
    here.run_all()
    assert tasks.get(task)["error"]["message"] == "Nobody has approved 'act' in time."


def test_an_agent_whose_input_has_to_be_approved(client: Client, tasks: Tasks, act: Any, here: Minion) -> None:
    task = tasks.submit(act(config={"approval": True}), {"do": "answer", "answer": 5})
    here._round()
    assert "Somebody has to approve Act with" in client.why(task)["sentence"]
    client.decide(task, "approve")
    here.run_all()
    assert tasks.get(task)["output"] == 5


@pytest.fixture
def interrupted(tasks: Tasks, act: Any, here: Minion, database: Engine) -> Any:
    """A task whose unsafe step was started, and whose worker died."""

    def make(log: Path) -> Any:
        task = tasks.submit(act("Unsafe", effect="unsafe"), {"do": "answer", "answer": "made", "log": str(log)})
        here._round()
        with database.begin() as connection:
            # As if the worker had died between the effect and its record.
            connection.execute(text("DELETE FROM task_outcomes WHERE task_id = :t"), {"t": task})
            connection.execute(text("ALTER TABLE task_status DISABLE TRIGGER USER"))
            connection.execute(text("UPDATE task_status SET state = 'pending' WHERE task_id = :t"), {"t": task})
            connection.execute(text("ALTER TABLE task_status ENABLE TRIGGER USER"))
            connection.execute(text("UPDATE executions SET outcome = 'lost' WHERE task_id = :t"), {"t": task})
            connection.execute(
                text("UPDATE steps SET status = 'started', output = NULL WHERE task_id = :t"), {"t": task}
            )
        here._round()
        return task

    return make


@pytest.mark.parametrize(
    ("verdict", "value", "state", "output", "calls"),
    [
        ("result", {"sent": True}, "succeeded", {"sent": True}, 1),
        ("again", None, "succeeded", "made", 2),
        ("fail", None, "failed", None, 1),
    ],
)
def test_what_became_of_an_interrupted_step(
    client: Client, tasks: Tasks, interrupted: Any, here: Minion, tmp_path: Path,
    verdict: str, value: Any, state: str, output: Any, calls: int,
) -> None:  # fmt: skip
    log = tmp_path / "calls"
    task = interrupted(log)
    waiting = tasks.get(task)
    assert (waiting["state"], waiting["wait_reason"]) == ("waiting", "answer")
    assert "Step 1 (act) was interrupted and is unsafe to repeat" in client.why(task)["sentence"]
    with pytest.raises(errors.InvalidInput, match="waits for result, again or fail"):
        client.decide(task, "approve")
    client.decide(task, verdict, value=value, reason="looked")
    here.run_all()
    ended = tasks.get(task)
    assert (ended["state"], ended["output"]) == (state, output)
    assert log.read_text().count("\n") == calls


@pytest.mark.parametrize(
    ("verdict", "value", "state", "calls"), [("result", 1, "succeeded", 1), ("again", None, "succeeded", 2)]
)
def test_an_unsafe_tool_that_raises_is_not_called_again_by_itself(
    client: Client, tasks: Tasks, act: Any, here: Minion, tmp_path: Path,
    verdict: str, value: Any, state: str, calls: int,
) -> None:  # fmt: skip
    """What it raised may have come after the effect, as a time-out does. The person is told what it was."""
    log = tmp_path / "calls"
    task = tasks.submit(act(effect="unsafe"), {"do": "time out", "times": 1, "log": str(log)})
    here._round()
    here._round()
    assert (tasks.get(task)["wait_reason"], log.read_text().count("\n")) == ("answer", 1)
    told = "Step 1 (act) was interrupted (The tool 'act' raised TimeoutError: no answer) and is unsafe to repeat"
    assert told in client.why(task)["sentence"]
    [step] = tasks.steps(task)
    assert (step["status"], step["error"]["type"]) == ("started", "tool_error")
    client.decide(task, verdict, value=value)
    here.run_all()
    assert (tasks.get(task)["state"], tasks.get(task)["attempts"], tasks.steps(task)[0]["error"]) == (state, 0, None)
    assert log.read_text().count("\n") == calls


def test_an_unsafe_tool_that_knows_that_nothing_happened_says_so(
    tasks: Tasks, act: Any, here: Minion, tmp_path: Path
) -> None:
    """With an error of ours: one that may be tried again, or one that may not."""
    act(effect="unsafe")
    logs = [tmp_path / "meet", tmp_path / "refuse"]
    meeting = {"do": "meet", "calls": 2, "patience": 0, "log": str(logs[0])}
    again, never = (tasks.submit("Act", {"do": "refuse", "log": str(logs[1])} if n else meeting) for n in range(2))
    here.run_all()
    assert (tasks.get(again)["state"], tasks.get(again)["attempts"]) == ("succeeded", 1)
    assert (tasks.get(never)["state"], tasks.get(never)["error"]["type"]) == ("failed", "tool_error")
    assert [log.read_text().count("\n") for log in logs] == [2, 1]


def test_decisions_that_nobody_waits_for(client: Client, tasks: Tasks, act: Any, careful: str, here: Minion) -> None:
    task = tasks.submit(act("Plain"), {})
    with pytest.raises(errors.Conflict, match="waits for no decision"):
        client.decide(task, "again")
    waiting = tasks.submit(careful, {})
    here._round()
    with pytest.raises(errors.Conflict, match="about step 7"):
        client.decide(waiting, "approve", step=7)
    with pytest.raises(errors.NotFound):
        client.decide("01a2049b-33df-70a1-a1e5-1d41ec86be9b", "approve")
    with pytest.raises(errors.InvalidInput):
        client.decide(waiting, "perhaps")


@pytest.mark.parametrize("step", [0, 2**31, 10**19])
def test_a_step_of_a_number_that_none_can_have_is_refused(http: httpx2.Client, step: int) -> None:
    refused = http.post(f"/v1/tasks/{uuid4()}/decisions", json={"verdict": "fail", "step": step})
    assert refused.status_code == 422, refused.text
    assert "step" in refused.json()["detail"]


def test_why_finds_the_proposal_behind_many_other_waits(
    client: Client, tasks: Tasks, careful: str, here: Minion, database: Engine
) -> None:
    task = tasks.submit(careful, {})
    here._round()
    with database.begin() as connection:
        connection.execute(text("UPDATE steps SET number = 30 WHERE task_id = :t"), {"t": task})
        connection.execute(
            text(
                "INSERT INTO steps (task_id, number, kind, name, status, effect, request_hash, claim, input) "
                "SELECT :t, n, 'wait', 'paid', 'started', 'pure', '', 1, '{\"signal\": \"paid\"}' "
                "FROM generate_series(1, 25) AS n"
            ),
            {"t": task},
        )
    assert "Somebody has to approve act with" in client.why(task)["sentence"]


@pytest.mark.parametrize("reason", ["approval", "answer", "budget", "subtask"])
def test_why_has_an_answer_when_the_task_moves_on_meanwhile(
    tasks: Tasks, act: Any, database: Engine, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    task = tasks.submit(act(), {})
    before = {**tasks.get(task), "state": "waiting", "wait_reason": reason}
    monkeypatch.setattr("shared.explain.get_task", lambda *_: before)
    with database.connect() as connection:
        found = explain(connection, task, lease=10)
    assert found.reason == reason
