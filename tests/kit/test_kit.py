"""The test kit as the tests of a repository use it, inline and with processes."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from minions import Client
from minions.testing import MessagesApi, error, text, tool_use
from pytest_minions.kit import Minions

# Ids and times: what differs between any two runs.
PASSING = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|20[0-9-]{8}T[0-9:.]+")
AGENTS = Path(__file__).parent / "desk.yaml"


@pytest.fixture(params=["minions", "live_minions"])
def desk(request: pytest.FixtureRequest) -> Minions:
    """The agents, in this process and with worker processes."""
    kit: Minions = request.getfixturevalue(request.param)
    kit.apply(AGENTS)
    return kit


@pytest.fixture
def inline(minions: Minions) -> Minions:
    """The agents in this process."""
    minions.apply(AGENTS)
    return minions


def test_submitted_task_runs(desk: Minions) -> None:
    with Client() as client:
        task = client.submit("pricing", {"boats": 2})
        desk.run_until_idle()
        assert task.result(timeout=0) == {"cents": 500}
    assert [each.id for each in desk.assert_submitted("pricing", {"boats": 2}, times=1)] == [task.id]


def test_each_test_begins_without_tasks_and_agents(desk: Minions) -> None:
    assert list(desk.client.tasks()) == []
    assert {agent["name"] for agent in desk.client.agents()} == {"pricing", "desk", "doer"}
    assert desk.model.requests == []


def test_approval_is_decided(desk: Minions, scripted_model: MessagesApi) -> None:
    scripted_model.script = [tool_use(("book", {"boats": 1})), text("Booked.")]
    task = desk.submit("desk", "One boat, please.")
    desk.run_until_idle()
    desk.assert_called(task, "book", times=0)
    desk.approve(task, {"boats": 2})
    assert desk.finish(task).state == "succeeded"
    desk.assert_called(task, "book", {"boats": 2}, times=1)
    assert "500" in str(scripted_model.requests[-1]["messages"][-1])


def test_deadline_of_an_approval_passes(desk: Minions, scripted_model: MessagesApi) -> None:
    scripted_model.script = [tool_use(("book", {"boats": 1})), text("Nobody answered.")]
    task = desk.submit("desk", "One boat, please.")
    desk.run_until_idle()
    desk.advance("59m")
    assert desk.client.get(task).state == "waiting"
    desk.advance("1m1s")
    assert desk.client.get(task).state == "succeeded"


def test_retries_wait_for_their_back_off(desk: Minions) -> None:
    task = desk.submit("doer", {"do": "fail", "until": 3})
    desk.run_until_idle()
    assert desk.client.get(task).state == "waiting"
    assert desk.finish(task).output == {"attempt": 3}
    assert [each["outcome"] for each in desk.client.executions(task)][-3:] == ["retried", "retried", "succeeded"]


def test_sleep_ends_when_time_passes(desk: Minions) -> None:
    task = desk.submit("doer", {"do": "sleep", "seconds": 7200})
    desk.run_until_idle()
    desk.advance(timedelta(hours=1))
    assert desk.client.get(task).state == "waiting"
    desk.advance("1h1s")
    assert desk.client.get(task).state == "succeeded"


def test_signal_wakes_a_task(desk: Minions) -> None:
    task = desk.submit("doer", {"do": "wait"})
    desk.run_until_idle()
    desk.signal(task, "tide", {"metres": 3})
    desk.run_until_idle()
    assert desk.client.get(task).output["payload"] == {"metres": 3}


def test_task_with_a_later_start_runs_after_it(desk: Minions) -> None:
    task = desk.submit("pricing", {"boats": 1}, run_at=datetime.now(UTC) + timedelta(hours=1))
    desk.run_until_idle()
    assert desk.client.get(task).state == "scheduled"
    desk.advance("1h1s")
    assert desk.client.get(task).state == "succeeded"


@pytest.mark.parametrize("times", [{"interval_seconds": 86_400}, {"cron": "0 9 * * *", "timezone": "Europe/Berlin"}])
def test_schedule_runs_each_day(desk: Minions, times: dict[str, Any]) -> None:
    desk.client.put_schedule("daily", {"agent": "pricing", "input": {"boats": 1}}, **times)
    for day in (1, 2, 3):
        desk.advance("1d1s")
        desk.assert_submitted("pricing", times=day)


def scenario(kit: Minions) -> list[dict[str, Any]]:
    """Run an agent that calls tools and a sub-agent, meets a fault, and waits for a person; return its record."""
    kit.model.script = [
        tool_use(("price", {"boats": 1}), ("ask_pricing", {"boats": 2})),
        error(400, "invalid_request_error", "Not today."),
        tool_use(("book", {"boats": 3})),
        text("Booked."),
    ]
    failed = kit.submit("desk", "First customer")
    kit.finish(failed)
    task = kit.submit("desk", "Second customer")
    kit.run_until_idle()
    kit.approve(task)
    kit.finish(task)
    signalled = kit.submit("doer", {"do": "wait"})
    kit.run_until_idle()
    kit.signal(signalled, "tide", 1)
    retried = kit.submit("doer", {"do": "fail", "until": 2})
    return [record(kit, each) for each in (failed, task, kit.finish(signalled), kit.finish(retried))]


def record(kit: Minions, task: Any) -> dict[str, Any]:
    """Return what a run leaves, without ids, times and costs of the machine."""
    found = kit.client.get(task)
    kept = "number kind name status effect claim attempt input output error cost_microdollars".split()
    steps = [{name: step[name] for name in kept if name in step} for step in kit.journal(task)]
    executions = [(each["outcome"], each.get("input_tokens")) for each in kit.client.executions(task)]
    whole = {"state": found.state, "output": found.output, "error": found.error, "steps": steps, "runs": executions}
    return json.loads(PASSING.sub("", json.dumps(whole)))


def test_inline_run_leaves_the_record_of_a_worker(minions: Minions, live_minions: Minions) -> None:
    records = []
    for kit in (minions, live_minions):
        kit.model.reset()
        kit.apply(AGENTS)
        records.append(scenario(kit))
    for here, there in zip(*records, strict=True):
        assert here == there
    assert [each["state"] for each in records[0]] == ["failed", "succeeded", "succeeded", "succeeded"]
    assert sum(len(each["steps"]) for each in records[0]) >= 8


def test_wrong_expectation_shows_what_was_submitted(inline: Minions) -> None:
    inline.submit("pricing", {"boats": 2})
    with pytest.raises(AssertionError, match=r"(?s)Expected 1 of .* found 0\. All of them:\n  \{'boats': 2\}"):
        inline.assert_submitted("pricing", {"boats": 3}, times=1)
    inline.assert_submitted("desk", times=0)


def test_task_that_waits_for_a_person_does_not_finish(inline: Minions) -> None:
    task = inline.submit("doer", {"do": "wait"})
    with pytest.raises(AssertionError, match="does not end by itself"):
        inline.finish(task)
    with pytest.raises(AssertionError, match="waits for no decision"):
        inline.approve(task)


@pytest.mark.parametrize("given", ["2", "soon", "-1h", timedelta(seconds=-1)])
def test_invalid_duration_is_refused(inline: Minions, given: Any) -> None:
    with pytest.raises(ValueError, match=r"Invalid duration|must not be negative"):
        inline.advance(given)


def test_code_under_test_keeps_its_own_environment(minions: Minions) -> None:
    from celery import current_app

    assert "DATABASE_URL" not in os.environ
    assert current_app.main != "minions"
