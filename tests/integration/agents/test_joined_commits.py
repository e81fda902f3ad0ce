"""Steps of an agent with a model that are committed together: the end of one, and the beginning of the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text

from minions import testing
from minions.testing import MessagesApi
from shared.database import connections
from shared.database.connections import transaction
from shared.tasks import lifecycle, standing_budgets, stops, throttles
from shared.tasks.throttles import Rate
from tests.integration.agents.conftest import DefineAgent
from tests.integration.conftest import InlineWorker, Tasks
from workers.llm.anthropic import AnthropicClient
from workers.llm.base import ModelRequest

Writes = list[list[str]]
BEGINS, ENDS = "model started", "model finished"
ANSWER = testing.text("Done.")


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    """The steps of each commit, as `model started` or `act finished`."""
    seen: Writes = []
    write = lifecycle.write_steps

    def noted(connection: Connection, task: UUID, claim: int, steps: list[Any], *more: Any) -> Any:
        named = {"model_call": "model"}
        seen.append([f"{named.get(step['kind'], step['name'])} {step['status']}" for step in steps])
        return write(connection, task, claim, steps, *more)

    monkeypatch.setattr(lifecycle, "write_steps", noted)
    return seen


@pytest.fixture
def run(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define_agent: DefineAgent) -> Any:
    """Runs a task whose model makes these calls in one turn, and then answers."""

    def task(*calls: tuple[str, dict[str, Any]], **fields: Any) -> dict[str, Any]:
        define_agent(tools=["echo", "act", "send"])
        messages_api.script = [testing.tool_use(*calls), ANSWER]
        submitted = tasks.submit("Agent", "Hello", **fields)
        inline_worker.run_due()
        return tasks.get(submitted)

    return task


def test_end_of_step_is_committed_with_beginning_of_next(run: Any, writes: Writes) -> None:
    assert run(("act", {"value": 1}))["state"] == "succeeded"
    assert writes == [[BEGINS], [ENDS, "act started"], ["act finished", BEGINS], [ENDS]]


def test_model_call_is_committed_before_pure_tool_runs(run: Any, writes: Writes) -> None:
    assert run(("echo", {"value": 1}))["state"] == "succeeded"
    assert writes == [[BEGINS], [ENDS], ["echo finished", BEGINS], [ENDS]]


def test_end_of_unsafe_step_is_committed_at_once(run: Any, writes: Writes) -> None:
    assert run(("send", {"value": 1}))["state"] == "succeeded"
    assert writes == [[BEGINS], [ENDS, "send started"], ["send finished"], [BEGINS], [ENDS]]


def test_parallel_steps_are_committed_when_they_end(run: Any, writes: Writes) -> None:
    assert run(*[("act", {"value": value}) for value in (1, 2)])["state"] == "succeeded"
    assert writes[:2] == [[BEGINS], [ENDS]]
    assert sorted(writes[2:6]) == [["act finished"]] * 2 + [["act started"]] * 2
    assert writes[6:] == [[BEGINS], [ENDS]]


def test_steps_under_a_budget_are_committed_when_they_end(run: Any, writes: Writes) -> None:
    """With a budget, other statements begin and end the steps that use it."""
    assert run(("act", {"value": 1}), budget={"tokens": 1_000_000})["state"] == "succeeded"
    assert not [each for each in writes if len(each) > 1]


def test_task_cancelled_during_model_call_begins_no_tool_call(
    run: Any, tasks: Tasks, before_joined: Any, database: Engine
) -> None:
    def cancel(connection: Connection) -> None:
        [task] = connection.scalars(text("SELECT task_id FROM task_status WHERE state = 'running'"))
        lifecycle.cancel(connection, task, reason="Test.")

    before_joined(cancel)
    task = run(("act", {"value": 1}))
    assert task["state"] == "cancelled"
    assert [(step["kind"], step["status"]) for step in tasks.steps(task["id"])] == [("model_call", "finished")]


@pytest.fixture
def before_joined(monkeypatch: pytest.MonkeyPatch, writes: Writes) -> Callable[[Callable[[Connection], object]], None]:
    """Commits something else before the first write of several steps."""

    def commit(change: Callable[[Connection], object]) -> None:
        noted: Callable[..., Any] = lifecycle.write_steps
        changes = [change]

        def after_change(connection: Connection, task: UUID, claim: int, steps: list[Any], *more: Any) -> Any:
            if len(steps) > 1 and changes:
                with transaction() as other:
                    changes.pop()(other)
            return noted(connection, task, claim, steps, *more)

        monkeypatch.setattr(lifecycle, "write_steps", after_change)

    return commit


def test_end_is_committed_when_a_stop_refuses_the_next_step(run: Any, writes: Writes, before_joined: Any) -> None:
    """The process may die before it suspends the task."""
    before_joined(lambda connection: stops.stop(connection, stops.target_of("installation"), reason="Test."))
    task = run(("send", {"value": 1}))
    assert (task["state"], task["wait_reason"]) == ("waiting", "stopped")
    assert writes == [[BEGINS], [ENDS, "send started"], [ENDS]]


def test_end_is_committed_before_the_next_call_is_estimated_for_a_new_standing_budget(
    run: Any, writes: Writes, before_joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate may be a request to the API."""
    estimate = AnthropicClient.count_tokens
    written: Writes = []

    def count_tokens(client: AnthropicClient, request: ModelRequest) -> int:
        written.append(writes[-1])
        return estimate(client, request)

    def add_budget(connection: Connection) -> None:
        standing_budgets.set_budget(connection, standing_budgets.target_of("installation"), "day", tokens=10**9)

    monkeypatch.setattr(AnthropicClient, "count_tokens", count_tokens)
    before_joined(add_budget)
    assert run(("act", {"value": 1}))["state"] == "succeeded"
    assert written == [["act finished"]]


def test_limits_of_a_model_are_read_with_the_beginning_of_its_call(run: Any, writes: Writes, database: Engine) -> None:
    with transaction() as connection:
        throttles.set_limit(connection, "model", "*", rate=Rate.parse("999999999/s"))
    statements: list[str] = []
    engine = connections._statement_engine()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        assert run(("act", {"value": 1}))["state"] == "succeeded"
    finally:
        event.remove(engine, "before_cursor_execute", note)
    reading = [statement for statement in statements if "FROM limits" in statement]
    assert len(reading) == 2
    assert all("minion_write_steps" in statement for statement in reading)
