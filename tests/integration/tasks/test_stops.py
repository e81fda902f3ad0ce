"""The kill switch: while a stop applies, no model call and no unsafe effect begins, and nothing is lost."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi
from orchestrator.explain import explain
from orchestrator.maintenance.resumer import Resumer
from shared.contracts.requests import Budget
from shared.database.connections import transaction
from shared.errors import InvalidInput, NotFound
from shared.settings import Settings
from shared.tasks import budgets, lifecycle, stops
from shared.tasks.records import StepRecord
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import Process, wait_until
from workers import journal_writer, minion

SPENT = text("SELECT spent_tokens, spent_microdollars, spent_steps FROM budgets WHERE task_id = :task")


def stop(scope: str = "installation", namespace: str | None = None, name: str | None = None, **record: Any) -> Any:
    with transaction() as connection:
        return stops.stop(connection, stops.target_of(scope, namespace, name), **record)


def lift(scope: str = "installation", namespace: str | None = None, name: str | None = None) -> None:
    with transaction() as connection:
        stops.lift(connection, stops.target_of(scope, namespace, name))


def run_due(inline_worker: InlineWorker) -> None:
    """Runs what is due until nothing is."""
    while messages := inline_worker.dispatch():
        for message in messages:
            minion.run(message.task_id, message.claim, inline_worker.id)


def why(engine: Engine, task: UUID) -> Any:
    with engine.connect() as connection:
        return explain(connection, task, lease=10)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file in which the tool `act` notes its calls."""
    return tmp_path / "calls"


def calls(log: Path) -> int:
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.parametrize(
    ("target", "option"),
    [
        (("installation", None, None), ""),
        (("namespace", "default", None), " --namespace default"),
        (("agent", None, "Act"), " --agent Act"),
        (("key", None, "tenant 7"), " --key 'tenant 7'"),
    ],
)
def test_unsafe_effect_waits_until_the_stop_is_lifted(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, database: Engine, log: Path, target: Any, option: str
) -> None:
    task = tasks.submit(act(effect="unsafe"), {"log": str(log)}, key="tenant 7")
    stop(*target, reason="It went mad", who="api:1 (claims to be Ann)")
    run_due(inline_worker)
    now = tasks.get(task)
    assert (now["state"], now["wait_reason"], now["attempts"], tasks.steps(task)) == ("waiting", "stopped", 0, [])
    assert calls(log) == 0
    status = why(database, task)
    assert status.reason == "stopped"
    assert "api:1 (claims to be Ann) stopped the" in status.sentence
    assert "(It went mad)" in status.sentence
    assert status.todo == f"`minion resume{option}` lifts the stop."
    assert status.facts["scope"] == target[0]
    lift(*target)
    assert tasks.get(task)["state"] == "pending"
    run_due(inline_worker)
    now = tasks.get(task)
    assert (now["state"], now["attempts"], calls(log)) == ("succeeded", 0, 1)
    assert [each["outcome"] for each in tasks.executions(task)] == ["suspended", "succeeded"]


@pytest.mark.parametrize(
    "target", [("namespace", "other", None), ("agent", None, "act"), ("agent", "other", "Act"), ("key", None, "t")]
)
def test_stop_of_something_else_holds_nothing(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, log: Path, target: Any
) -> None:
    task = tasks.submit(act(effect="unsafe"), {"log": str(log)}, key="tenant")
    stop(*target)
    run_due(inline_worker)
    assert (tasks.get(task)["state"], calls(log)) == ("succeeded", 1)


@pytest.mark.parametrize("effect", ["pure", "idempotent"])
def test_other_effects_continue(tasks: Tasks, act: Any, inline_worker: InlineWorker, log: Path, effect: str) -> None:
    stop()
    task = tasks.submit(act(effect=effect), {"log": str(log)})
    run_due(inline_worker)
    assert (tasks.get(task)["state"], calls(log)) == ("succeeded", 1)


def test_tenant_key_covers_the_tasks_below(
    tasks: Tasks, act: Any, define: Define, inline_worker: InlineWorker, log: Path
) -> None:
    act(effect="unsafe")
    config = {"capabilities": ["work"]}
    define({"kind": "agent", "name": "Root", "type": "function", "relations": [{"agent": "Act"}], "config": config})
    stop("key", None, "tenant")
    root = tasks.submit("Root", {"log": str(log)}, key="tenant")
    run_due(inline_worker)
    [child] = tasks.children(root)
    assert (tasks.get(root)["wait_reason"], child["wait_reason"], calls(log)) == ("subtask", "stopped", 0)
    lift("key", None, "tenant")
    inline_worker.run_all()
    assert (tasks.get(root)["state"], calls(log)) == ("succeeded", 1)


# ------------------------------------------------------------------------------------------ model calls


@pytest.fixture
def model(define: Define) -> str:
    define({"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "config": {"capabilities": ["work"]}})
    return "Model"


def test_model_call_waits(tasks: Tasks, model: str, inline_worker: InlineWorker, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text("Hi.")]
    task = tasks.submit(model, "Hello")
    stop()
    run_due(inline_worker)
    assert (tasks.get(task)["wait_reason"], messages_api.requests) == ("stopped", [])
    lift()
    run_due(inline_worker)
    assert (tasks.get(task)["output"], len(messages_api.requests)) == ({"content": "Hi."}, 1)


def test_unsafe_call_of_a_model_waits(
    tasks: Tasks, define: Define, inline_worker: InlineWorker, messages_api: MessagesApi, log: Path
) -> None:
    """Calls before it in the same turn are made once."""
    config = {"capabilities": ["work"]}
    anything = {"type": "object"}
    define(
        {**ACT, "input_schema": anything},
        {**ACT, "name": "send", "effect": "unsafe", "input_schema": anything},
        {"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "tools": ["act", "send"], "config": config},
    )
    sent = log.with_name("sent")
    messages_api.script = [
        testing.tool_use(("act", {"log": str(log)}), ("send", {"log": str(sent)})),
        testing.text("Done."),
    ]
    answer = messages_api.answer

    def answer_and_stop(headers: dict[str, str], body: dict[str, Any]) -> Any:
        if not messages_api.requests:
            stop()
        return answer(headers, body)

    messages_api.answer = answer_and_stop  # type: ignore[method-assign]
    task = tasks.submit("Model", "Hello")
    run_due(inline_worker)
    assert (tasks.get(task)["wait_reason"], calls(log), calls(sent), len(messages_api.requests)) == ("stopped", 1, 0, 1)
    lift()
    run_due(inline_worker)
    assert (tasks.get(task)["state"], calls(log), calls(sent), len(messages_api.requests)) == ("succeeded", 1, 1, 2)


def test_offline_planner_waits_too(tasks: Tasks, define: Define, inline_worker: InlineWorker) -> None:
    define({"kind": "agent", "name": "Planner", "model": "offline", "config": {"capabilities": ["work"]}})
    stop()
    task = tasks.submit("Planner", "Hello")
    run_due(inline_worker)
    assert tasks.get(task)["wait_reason"] == "stopped"


def test_retry_in_place_does_not_begin(
    tasks: Tasks,
    model: str,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
    database: Engine,
) -> None:
    """The API is overloaded, and a stop is set while the first request is under way."""
    monkeypatch.setattr(journal_writer, "FRESH_SECONDS", 0.0)
    messages_api.script = [testing.error(529, "overloaded_error", "Overloaded"), testing.text("Hi.")]
    answer = messages_api.answer

    def answer_and_stop(headers: dict[str, str], body: dict[str, Any]) -> Any:
        if not messages_api.requests:
            stop()
        return answer(headers, body)

    monkeypatch.setattr(messages_api, "answer", answer_and_stop)
    task = tasks.submit(model, "Hello", budget=Budget(tokens=100_000))
    run_due(inline_worker)
    [step] = tasks.steps(task)
    assert (tasks.get(task)["wait_reason"], len(messages_api.requests)) == ("stopped", 1)
    assert (step["status"], step["error"]["type"]) == ("failed", "stopped")
    assert "the whole installation" in step["error"]["message"]
    with database.connect() as connection:
        assert tuple(connection.execute(SPENT, {"task": task}).one()) == (0, 0, 1)
    lift()
    run_due(inline_worker)
    now = tasks.get(task)
    assert (now["output"], now["attempts"], len(messages_api.requests)) == ({"content": "Hi."}, 0, 2)


def test_stop_after_a_slow_commit_is_obeyed(
    tasks: Tasks, act: Any, inline_worker: InlineWorker, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unsafe step that is committed but has not begun needs no person's decision."""
    monkeypatch.setattr(journal_writer, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(journal_writer.Followers, "notify", lambda followers: stop())
    task = tasks.submit(act(effect="unsafe"), {"log": str(log)})
    run_due(inline_worker)
    monkeypatch.undo()
    [step] = tasks.steps(task)
    assert (tasks.get(task)["wait_reason"], step["status"], calls(log)) == ("stopped", "failed", 0)
    lift()
    run_due(inline_worker)
    assert (tasks.get(task)["state"], calls(log)) == ("succeeded", 1)


# ------------------------------------------------------------------------------------------ the database


def begun(effect: str = "unsafe", **fields: Any) -> StepRecord:
    step = {"number": 1, "kind": "tool_call", "name": "x", "status": "started", "effect": effect, "request_hash": "h"}
    return {**step, **fields}  # type: ignore[typeddict-item, return-value]


def test_write_that_is_repeated_after_its_commit_is_accepted(driver: LifecycleDriver) -> None:
    """The answer was lost, and a stop came in between. The minion checks again before it calls."""
    task = driver.run()
    assert driver.call(lifecycle.write_steps, task, 1, [begun()]) == {"cancel": False}
    stop()
    assert driver.call(lifecycle.write_steps, task, 1, [begun()]) == {"cancel": False}
    flags = driver.call(lifecycle.write_steps, task, 1, [begun(number=2)])
    assert flags is not None
    assert flags["stopped"]["scope"] == "installation"
    assert (
        driver.call(lifecycle.write_steps, task, 1, [begun(error={"type": "x"}), begun("pure", number=3)]) is not None
    )
    assert driver.sql("SELECT count(*) FROM steps") == 2


def test_reservation_of_a_step_that_is_stopped_is_withdrawn(driver: LifecycleDriver) -> None:
    task = driver.run(budget=Budget(tokens=100))
    stop()
    asked = {"step": 1, "steps": 1, "tokens": 60, "microdollars": 7}
    flags = driver.call(budgets.spend, task, 1, [begun(kind="model_call")], reserve=asked)
    assert "stopped" in flags
    assert driver.call(lambda connection: tuple(connection.execute(SPENT, {"task": task}).one())) == (0, 0, 0)
    assert driver.sql("SELECT count(*) FROM reservations") == 0


def test_worker_of_release_0_2_suspends_the_task(driver: LifecycleDriver) -> None:
    """It obeys `breach` alone, and suspends the task for a budget."""
    task = driver.run()
    stop()
    flags = driver.call(lifecycle.write_steps, task, 1, [begun()])
    error = budgets.exceeded(flags["breach"]).as_dict()
    assert driver.call(lifecycle.snooze, task, 1, {"error": error}, delay=None, reason="budget") == "waiting"
    assert driver.row(task)["wait_reason"] == "stopped"
    assert driver.sql("SELECT error FROM executions") is None
    lift()
    assert driver.state(task) == "pending"


def stopped(driver: LifecycleDriver, **fields: Any) -> UUID:
    """A task that waits because of a stop."""
    task = driver.run(**fields)
    driver.call(lifecycle.snooze, task, 1, {}, delay=None, reason="stopped")
    return task


def test_resumer_wakes_in_batches(driver: LifecycleDriver) -> None:
    """Also a task that was suspended just after its stop had been lifted."""
    tasks = sorted(stopped(driver) for _ in range(5))
    assert driver.call(stops.wake, limit=2) == (2, tasks[1])
    assert driver.call(stops.wake, after=tasks[1], limit=2) == (2, tasks[3])
    assert driver.call(stops.wake, after=tasks[3], limit=2) == (1, None)
    assert {driver.state(task) for task in tasks} == {"pending"}


def test_task_continues_when_its_last_stop_is_lifted(driver: LifecycleDriver, settings: Settings) -> None:
    task, other = stopped(driver, key="tenant"), stopped(driver)
    stop("agent", None, "A")
    stop("key", None, "tenant")
    resumer = Resumer(settings, driver.engine)
    resumer.run_once()
    assert (driver.state(task), driver.state(other)) == ("waiting", "waiting")
    lift("agent", None, "A")
    assert (driver.state(task), driver.state(other)) == ("waiting", "pending")
    driver.sql("DELETE FROM stops")
    resumer.run_once()
    assert driver.state(task) == "pending"


def test_stopped_task_can_be_cancelled(driver: LifecycleDriver) -> None:
    task = stopped(driver)
    stop()
    assert driver.call(lifecycle.cancel, task, reason="x") == "cancelled"


def test_stop_may_be_repeated(database: Engine) -> None:
    first = stop(reason="a", who="Ann")
    again = stop(who="Ben")
    assert (again["reason"], again["created_by"], again["created_at"]) == ("a", "Ann", first["created_at"])
    assert stop(reason="b")["reason"] == "b"
    lift()
    with pytest.raises(NotFound, match="no stop of the whole installation"):
        lift()


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        (("planet", None, None), "must be one of installation, namespace, agent, key, not 'planet'"),
        (("model", None, "claude"), "must be one of"),
        (("installation", "default", None), "neither a namespace nor a name"),
        (("installation", None, "A"), "neither a namespace nor a name"),
        (("namespace", None, None), "must name its namespace"),
        (("namespace", "default", "A"), "must have no name"),
        (("agent", None, None), "must name its agent"),
        (("agent", None, ""), "must name its agent"),
        (("agent", "", "A"), "must name its namespace"),
        (("key", None, "*"), "must name one key"),
        (("key", None, "x" * 256), "1 to 255 characters"),
        (("key", None, "a\0b"), "without U"),
    ],
)
def test_target_must_fit_its_scope(target: Any, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        stops.target_of(*target)


# ------------------------------------------------------------------------------------------ real processes


def test_nothing_begins_in_a_worker_after_the_stop(
    tasks: Tasks, act: Any, loops: None, worker: Process, log: Path
) -> None:
    """Tasks flow through a real worker; the stop holds for all of them, and lifting it loses none."""
    agent = act(effect="unsafe")
    ids = [tasks.submit(agent, {"log": str(log), "do": "sleep", "seconds": 0.02}) for _ in range(40)]
    wait_until(lambda: calls(log) >= 3, "the first calls")
    since = stop()["created_at"]
    wait_until(lambda: _held(tasks, ids), "all tasks have ended or are held")
    assert tasks.count().get("waiting", 0) > 0
    assert latest_start(tasks, ids) < since + timedelta(seconds=1)
    lift()
    for task in ids:
        assert tasks.wait(task)["attempts"] == 0
    assert calls(log) == len(ids)


def _held(tasks: Tasks, ids: list[UUID]) -> bool:
    return all(now["state"] == "succeeded" or now["wait_reason"] == "stopped" for now in map(tasks.get, ids))


def latest_start(tasks: Tasks, ids: list[UUID]) -> datetime:
    return max(step["started_at"] for task in ids for step in tasks.steps(task))
