"""Standing budgets: models never use more in a period than a budget allows, despite crashes and concurrency."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from minions import testing
from minions.testing import MessagesApi
from orchestrator.explain import explain
from orchestrator.maintenance.standing_budget_keeper import StandingBudgetKeeper
from orchestrator.retention.retention import prune
from shared.contracts.requests import Budget
from shared.database.connections import make_engine, transaction
from shared.errors import BudgetExceeded, InvalidInput, ModelError, ModelUnavailable, NotFound
from shared.settings import Settings
from shared.tasks import budgets, lifecycle, standing_budgets, stops
from shared.tasks.records import StepRecord
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until
from workers import minion
from workers.journal import Journal
from workers.outcomes import Postponed
from workers.pricing import Reservation
from workers.steps import StepResult
from workers.task import ClaimedTask

BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :what")


def set_budget(scope: str = "installation", name: str | None = None, **given: Any) -> dict[str, Any]:
    given = {"period": "day", **given}
    target = standing_budgets.target_of(scope, given.pop("namespace", None), name)
    with transaction() as connection:
        return standing_budgets.set_budget(connection, target, given.pop("period"), **given)


def remove_budget(scope: str = "installation", name: str | None = None, period: str = "day") -> None:
    with transaction() as connection:
        standing_budgets.remove_budget(connection, standing_budgets.target_of(scope, None, name), period)


def used(engine: Engine, **chosen: Any) -> tuple[Any, ...]:
    """Tokens spent and reserved, then dollars, of the only budget or of the one with these fields."""
    with engine.connect() as connection:
        [found] = [
            each
            for each in standing_budgets.list_budgets(connection)
            if all(each[field] == value for field, value in chosen.items())
        ]
    return tuple(found[what][how] for what in ("tokens", "dollars") for how in ("spent", "reserved"))


def alerts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        [found] = standing_budgets.list_budgets(connection)
    return [each["percent"] for each in found["alerts"]]


def shift(engine: Engine, by: timedelta) -> None:
    """Move all that was recorded, as if the database's clock had shown another time."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # without checks of references
        far = timedelta(days=10_000)  # two steps, so that no period moves to where another one still is
        for table, step in product(("standing_usage", "standing_reservations", "standing_alerts"), (by + far, -far)):
            connection.execute(text(f"UPDATE {table} SET period_start = period_start + :by"), {"by": step})
        connection.execute(text("UPDATE standing_usage SET period_end = period_end + :by"), {"by": by})


def wake() -> int:
    with transaction() as connection:
        return standing_budgets.wake(connection)


def why(engine: Engine, task: UUID) -> Any:
    with engine.connect() as connection:
        return explain(connection, task, lease=10)


@pytest.fixture
def claim(tasks: Tasks, inline_worker: InlineWorker, act: Any) -> Any:
    """Claims a task, a new one with these fields or one that was released."""
    act()
    claims: dict[UUID, int] = {}

    def take(task: UUID | None = None, **fields: Any) -> Journal:
        if task is None:
            task = tasks.submit("Act", {}, **fields)
        elif tasks.get(task)["state"] == "running":
            with transaction() as connection:
                lifecycle.release(connection, task, tasks.get(task)["claim"], how="lost", charged=False)
        claims.update({message.task_id: message.claim for message in inline_worker.dispatch()})
        with transaction() as connection:
            row = lifecycle.claim(connection, task, claims[task], inline_worker.id)
        assert row is not None
        return minion.journal_of(ClaimedTask.of(row))

    return take


def call(
    journal: Journal, tokens: int, really: int | BaseException = 0, *, dollars: int | None = 0, model: str = "m"
) -> Any:
    """Make a call with this reservation and this use, in tokens and micro-dollars."""

    def perform(step: int) -> StepResult:
        if isinstance(really, BaseException):
            raise really
        return StepResult("done", input_tokens=really, cost_microdollars=really if dollars else 0)

    return journal.call(
        "model_call", model, None, perform, effect="idempotent", reserve=lambda: Reservation(tokens, dollars)
    )


def wait(journal: Journal, tokens: int, **options: Any) -> BudgetExceeded:
    """A call that does not fit, after which its task is suspended, as a minion does it."""
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, tokens, **options)
    with transaction() as connection:
        state = lifecycle.snooze(
            connection, journal.task_id, journal.claim, {"error": caught.value.as_dict()}, delay=None, reason="budget"
        )
    assert state == "waiting"
    return caught.value


@pytest.mark.parametrize(
    ("scope", "name", "other"),
    [
        ("installation", None, None),
        ("namespace", "default", "team"),
        ("agent", "Act", "act"),
        ("key", "tenant", "tenant-2"),
        ("model", "m", "claude"),
    ],
)
@pytest.mark.parametrize("limits", [{"tokens": 100}, {"dollars": 0.0001}])
def test_call_that_does_not_fit_waits(
    claim: Any, tasks: Tasks, database: Engine, scope: str, name: str | None, other: str | None, limits: Any
) -> None:
    where = {"namespace": name, "name": None} if scope == "namespace" else {"name": name}
    if other is not None:
        set_budget(scope, **({"namespace": other} if scope == "namespace" else {"name": other}), tokens=1)
    budget = set_budget(scope, **where, **limits)
    journal = claim(key="tenant")
    assert call(journal, 100, 50, dollars=100) == "done"
    error = wait(journal, 60, dollars=60)
    assert error.detail["budget"] == str(budget["id"])
    now = tasks.get(journal.task_id)
    assert (now["state"], now["wait_reason"], now["attempts"]) == ("waiting", "standing_budget", 0)
    assert used(database, id=budget["id"]) == pytest.approx((50, 0, 0.00005, 0))
    assert [step["status"] for step in tasks.steps(journal.task_id)] == ["finished"]
    status = why(database, journal.task_id)
    assert (status.reason, status.facts["scope"]) == ("standing_budget", scope)
    assert f"per day has no room for the next call: {'$0.00005' if 'dollars' in limits else '50'}" in status.sentence
    assert "The day ends at" in status.sentence
    assert status.todo.startswith(f"`minion budgets set {scope}")
    assert wake() == 0
    set_budget(scope, **where, tokens=110, dollars=0.00011)
    assert tasks.get(journal.task_id)["state"] == "pending"
    assert call(claim(journal.task_id), 60, 60, dollars=60) == "done"


def test_without_a_budget_nothing_is_reserved(claim: Any, database: Engine) -> None:
    def reserve() -> Reservation:
        raise AssertionError("counted")

    set_budget("agent", "Other", tokens=1)
    claim().call("model_call", "m", None, lambda step: StepResult("done"), effect="idempotent", reserve=reserve)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM standing_usage")) == 0


def test_budget_that_is_added_applies_to_the_next_call(claim: Any, database: Engine) -> None:
    journal = claim()
    assert call(journal, 1000, 1000) == "done"
    set_budget(tokens=100)
    assert call(journal, 100, 10) == "done"
    assert journal.reserves
    assert call(journal, 90, 90) == "done"
    with pytest.raises(BudgetExceeded):
        call(journal, 1)
    assert used(database)[:2] == (100, 0)


def test_other_steps_use_no_standing_budget(claim: Any, database: Engine) -> None:
    set_budget(tokens=1)
    for kind, effect in (("tool_call", "unsafe"), ("function_call", "pure")):
        assert claim().call(kind, "m", None, lambda step: StepResult("done"), effect=effect) == "done"
    assert used(database)[:2] == (0, 0)


def test_call_that_costs_nothing_needs_no_reservation(claim: Any, database: Engine) -> None:
    """Such as a summary by the offline planner."""
    set_budget(tokens=1)
    assert claim().call("model_call", "offline", None, lambda step: StepResult("x"), effect="idempotent") == "x"
    assert used(database)[:2] == (0, 0)


def test_model_agent_waits_and_continues(
    tasks: Tasks, define: Define, inline_worker: InlineWorker, messages_api: MessagesApi, database: Engine
) -> None:
    messages_api.script = [testing.text("Yes.", usage={"input_tokens": 20, "output_tokens": 30})]
    config = {"capabilities": ["work"], "max_tokens": 100}
    define({"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "config": config})
    set_budget("model", "claude-sonnet-5-5", tokens=180)
    first = tasks.submit("Model", "Hello")
    inline_worker._round()
    assert (tasks.get(first)["state"], used(database)[:2], len(messages_api.requests)) == ("succeeded", (50, 0), 1)
    set_budget("model", "claude-sonnet-5-5", tokens=60)
    second = tasks.submit("Model", "Hello again")
    inline_worker._round()
    assert (tasks.get(second)["wait_reason"], len(messages_api.requests)) == ("standing_budget", 1)
    remove_budget("model", "claude-sonnet-5-5")
    inline_worker.run_all()
    assert tasks.get(second)["output"] == {"content": "Yes."}


# ------------------------------------------------------------------------------------------ on breach


def test_budget_that_fails_tasks(claim: Any) -> None:
    set_budget(tokens=100, on_breach="fail")
    with pytest.raises(
        BudgetExceeded, match="`minion budgets set installation --per day --tokens N` raises it"
    ) as caught:
        call(claim(), 101)
    assert caught.value.detail["then"] == "fail"
    assert not caught.value.retryable


def test_budget_that_alerts_counts_and_lets_calls_begin(claim: Any, database: Engine) -> None:
    set_budget(tokens=100, on_breach="alert")
    assert call(claim(), 500, 300) == "done"
    assert used(database)[:2] == (300, 0)
    assert alerts(database) == [50, 80, 100]


def test_waiting_task_fails_or_continues_when_the_consequence_changes(claim: Any, tasks: Tasks) -> None:
    set_budget(tokens=100)
    journals = [claim(), claim()]
    for journal in journals:
        wait(journal, 200)
    set_budget(tokens=100, on_breach="fail")
    assert {tasks.get(journal.task_id)["state"] for journal in journals} == {"pending"}
    with pytest.raises(BudgetExceeded):
        call(claim(journals[0].task_id), 200)
    set_budget(tokens=100, on_breach="alert")
    assert call(claim(journals[1].task_id), 200) == "done"


def test_unknown_price_fails_in_a_budget_of_dollars(claim: Any, database: Engine) -> None:
    set_budget("agent", "Act", tokens=100)
    assert call(claim(), 60, 10, dollars=None) == "done"
    set_budget(dollars=1)
    with pytest.raises(BudgetExceeded, match="price of the model that this call uses is not known") as caught:
        call(claim(), 60, dollars=None)
    assert caught.value.detail["then"] == "fail"
    set_budget(dollars=1, on_breach="alert")
    assert call(claim(), 60, 10, dollars=None) == "done"
    assert used(database, scope="installation") == (10, 0, 0, 0)


def test_wait_for_a_budget_smaller_than_one_call_is_explained(claim: Any, tasks: Tasks, database: Engine) -> None:
    set_budget(tokens=100)
    journal = claim()
    wait(journal, 101)
    assert (
        "may take more than the whole budget: it waits until the budget is raised"
        in why(database, journal.task_id).sentence
    )
    assert alerts(database) == []
    shift(database, -timedelta(days=2))
    assert wake() == 0
    assert tasks.get(journal.task_id)["state"] == "waiting"


def test_reserved_room_is_awaited(claim: Any, tasks: Tasks, database: Engine) -> None:
    """Also by a budget that fails tasks: the running call may leave room."""
    set_budget(tokens=100, on_breach="fail")
    holder, poor = claim(), claim()
    asked = reservation(80)
    with transaction() as connection:
        assert budgets.spend(connection, holder.task_id, 1, [begun()], reserve=asked) == {"cancel": False}
    wait(poor, 50)
    assert "running calls hold up to 80 tokens" in why(database, poor.task_id).sentence
    assert "It continues when those calls have ended" in why(database, poor.task_id).sentence
    assert (wake(), alerts(database)) == (0, [])
    with transaction() as connection:
        budgets.spend(connection, holder.task_id, 1, [], used=use(10))
    assert "has room again" in why(database, poor.task_id).sentence
    assert wake() == 1
    assert call(claim(poor.task_id), 50, 50) == "done"


def test_waiting_task_fails_when_the_holder_has_used_all(
    claim: Any, tasks: Tasks, settings: Settings, database: Engine
) -> None:
    set_budget(tokens=100, on_breach="fail")
    holder, poor = claim(), claim()
    with pytest.raises(KeyboardInterrupt):
        call(holder, 80, KeyboardInterrupt())
    wait(poor, 50)
    with transaction() as connection:
        lifecycle.release(connection, holder.task_id, 1, how="lost", charged=False)
    StandingBudgetKeeper(settings, database).run_once()
    assert used(database)[:2] == (80, 0)
    with pytest.raises(BudgetExceeded) as caught:
        call(claim(poor.task_id), 50)
    assert caught.value.detail["then"] == "fail"


# ------------------------------------------------------------------------------------------ what a call has used


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (ModelError("refused", http_status=400), 0),
        (ModelUnavailable("cut off", cost_unknown=True), 60),
        (Postponed(60, "model_unavailable", ModelUnavailable("overloaded")), 0),
        (Postponed(60, "model_unavailable", ModelUnavailable("cut off", cost_unknown=True)), 60),
        (KeyboardInterrupt(), 60),
    ],
)
@pytest.mark.parametrize("budget", [None, Budget(tokens=1000)])
def test_refused_call_releases_its_reservation(
    claim: Any, database: Engine, settings: Settings, failure: BaseException, left: int, budget: Any
) -> None:
    set_budget(tokens=100)
    journal = claim(budget=budget)
    with pytest.raises(type(failure)):
        call(journal, 60, failure)
    assert sum(used(database)[:2]) == left
    claim(journal.task_id)
    StandingBudgetKeeper(settings, database).run_once()
    assert used(database)[:2] == (left, 0)


def begun(number: int = 1, **fields: Any) -> StepRecord:
    step = {"number": number, "kind": "model_call", "name": "m", "status": "started", "effect": "idempotent"}
    return {**step, "request_hash": "h", **fields}  # type: ignore[typeddict-item, return-value]


def reservation(tokens: int) -> dict[str, int]:
    """What the first step asks for."""
    return {"step": 1, "steps": 1, "tokens": tokens, "microdollars": 0}


def use(tokens: int) -> dict[str, int]:
    """What the first step has used."""
    return {"step": 1, "tokens": tokens, "microdollars": 0}


def test_repeated_write_counts_once(driver: LifecycleDriver, database: Engine) -> None:
    """A connection may be lost after the commit."""
    set_budget(tokens=100)
    task = driver.run()
    asked, over = {"step": 1, "steps": 1, "tokens": 60}, use(10)
    assert driver.call(lifecycle.write_steps, task, 1, [begun()])["unreserved"]
    for _ in range(2):
        assert driver.call(budgets.spend, task, 1, [begun()], reserve=asked) == {"cancel": False}
        assert used(database)[:2] == (0, 60)
    assert driver.call(lifecycle.write_steps, task, 1, [begun()]) == {"cancel": False}
    for _ in range(2):
        assert driver.call(budgets.spend, task, 1, [], used=over) == {"cancel": False}
        assert used(database)[:2] == (10, 0)


def test_lineage_budget_keeps_nothing_of_a_call_that_a_standing_budget_refuses(driver: LifecycleDriver) -> None:
    set_budget(tokens=50)
    task = driver.run(budget=Budget(tokens=100, steps=5))
    asked = reservation(60)
    assert "breach" in driver.call(budgets.spend, task, 1, [begun()], reserve=asked)
    assert driver.sql("SELECT spent_tokens + spent_steps FROM budgets") == 0
    assert driver.sql("SELECT count(*) FROM reservations") == 0


def test_all_budgets_reserve_or_none(claim: Any, database: Engine) -> None:
    set_budget(tokens=100)
    set_budget("key", "tenant", tokens=10)
    journal = claim(key="tenant")
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, 20)
    assert caught.value.detail["scope"] == "key"
    assert used(database, scope="installation")[:2] == used(database, scope="key")[:2] == (0, 0)
    assert call(journal, 10, 10) == "done"
    assert used(database, scope="installation")[:2] == used(database, scope="key")[:2] == (10, 0)


def test_stop_withdraws_the_reservation(driver: LifecycleDriver, database: Engine) -> None:
    set_budget(tokens=100)
    task = driver.run()
    driver.call(stops.stop, stops.target_of("installation"))
    asked = reservation(60)
    assert "stopped" in driver.call(budgets.spend, task, 1, [begun()], reserve=asked)
    assert used(database)[:2] == (0, 0)


def test_cancelled_task_reserves_nothing(driver: LifecycleDriver, database: Engine) -> None:
    set_budget(tokens=100)
    task = driver.run()
    driver.call(lifecycle.cancel, task, reason="x")
    assert driver.call(lifecycle.write_steps, task, 1, [begun()]) == {"cancel": True}
    assert used(database)[:2] == (0, 0)


def test_worker_of_release_0_2_hands_the_task_back(driver: LifecycleDriver) -> None:
    """It cannot reserve for a standing budget, unless the task has its own budget. It obeys `breach` alone."""
    set_budget(tokens=100)
    task = driver.run()
    error = budgets.exceeded(driver.call(lifecycle.write_steps, task, 1, [begun()])["breach"]).as_dict()
    assert driver.call(lifecycle.snooze, task, 1, {"error": error}, delay=None, reason="budget") == "waiting"
    row = driver.row(task)
    assert (row["wait_reason"], row["due_at"] > row["updated_at"]) == ("handed_back", True)
    assert driver.sql("SELECT outcome FROM executions") == "handed_back"


# ------------------------------------------------------------------------------------------ periods


def test_use_is_settled_in_its_period_and_tasks_continue_in_the_next(
    claim: Any, tasks: Tasks, database: Engine
) -> None:
    set_budget(tokens=100)
    holder, poor = claim(), claim()
    asked = reservation(80)
    with transaction() as connection:
        budgets.spend(connection, holder.task_id, 1, [begun()], reserve=asked)
    wait(poor, 50)
    shift(database, -timedelta(days=2))
    assert wake() == 1
    assert call(claim(poor.task_id), 100, 70) == "done"
    with transaction() as connection:
        budgets.spend(connection, holder.task_id, 1, [], used=use(20))
    assert used(database)[:2] == (70, 0)
    shift(database, timedelta(days=2))
    assert used(database)[:2] == (20, 0)


def test_old_periods_are_dropped(claim: Any, database: Engine) -> None:
    set_budget(tokens=100)
    for days in (40, 2, 0):
        call(claim(), 90, 90)
        shift(database, -timedelta(days=days))
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM standing_usage")) == 2


def test_clock_that_goes_back_finds_the_use_of_that_time(claim: Any, database: Engine) -> None:
    set_budget(tokens=100, period="hour")
    call(claim(), 60, 60)
    shift(database, timedelta(hours=1))
    assert used(database)[:2] == (0, 0)
    call(claim(), 60, 50)
    with pytest.raises(BudgetExceeded):
        call(claim(), 60)
    shift(database, -timedelta(hours=1))
    assert used(database)[:2] == (60, 0)


@pytest.mark.parametrize(
    ("period", "zone", "moment", "starts", "ends"),
    [
        ("hour", "UTC", "2026-11-29T11:42:00Z", "2026-11-29T11:00:00Z", "2026-11-29T12:00:00Z"),
        ("day", "UTC", "2026-11-29T11:42:00Z", "2026-11-29T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("month", "UTC", "2026-11-29T11:42:00Z", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("month", "America/New_York", "2026-03-01T04:59:00Z", "2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z"),
        ("day", "Asia/Kolkata", "2026-11-29T18:29:00Z", "2026-11-28T18:30:00Z", "2026-11-29T18:30:00Z"),
        ("hour", "Asia/Kolkata", "2026-11-29T11:42:00Z", "2026-11-29T11:30:00Z", "2026-11-29T12:30:00Z"),
        # Days of 23 and 25 hours, and the hour that comes twice.
        ("day", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
        ("hour", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"),
    ],
)
def test_periods_are_those_of_the_calendar(
    database: Engine, period: str, zone: str, moment: str, starts: str, ends: str
) -> None:
    with database.connect() as connection:
        values = {"period": period, "zone": zone, "moment": datetime.fromisoformat(moment)}
        row = connection.execute(text("SELECT * FROM minion_period(:period, :zone, :moment)"), values).one()
    assert [each.astimezone(UTC) for each in row] == [datetime.fromisoformat(each) for each in (starts, ends)]


# ------------------------------------------------------------------------------------------ alerts


def test_alerts_are_raised_and_logged_once_in_a_period(claim: Any, database: Engine, settings: Settings) -> None:
    set_budget(tokens=100, dollars=1)
    keeper = StandingBudgetKeeper(settings, database)
    journal = claim()
    with capture_logs() as logs:
        for tokens, expected in ((49, []), (1, [50]), (40, [50, 80]), (9, [50, 80])):
            call(journal, tokens, tokens)
            assert alerts(database) == expected
            keeper.run_once()
            keeper.run_once()
        wait(journal, 5)
        assert alerts(database) == [50, 80, 100]
        keeper.run_once()
    logged = [
        (each["log_level"], each["percent"], each["budget"])
        for each in logs
        if each["event"] == "standing_budget_alert"
    ]
    assert logged == [("warning", percent, "the whole installation") for percent in (50, 80, 100)]


# ------------------------------------------------------------------------------------------ waiting


def test_room_goes_to_the_first_ones_that_fit_together(claim: Any, tasks: Tasks) -> None:
    set_budget(tokens=1)
    journals = [claim() for _ in range(4)]
    for journal, tokens in zip(journals, (60, 500, 30, 20), strict=True):
        wait(journal, tokens)
    set_budget(tokens=100)
    assert [tasks.get(journal.task_id)["state"] for journal in journals] == ["pending", "waiting", "pending", "waiting"]


def test_removed_budget_lets_its_tasks_continue(claim: Any, tasks: Tasks, database: Engine) -> None:
    set_budget(tokens=100)
    holder, poor = claim(), claim()
    asked = reservation(80)
    with transaction() as connection:
        budgets.spend(connection, holder.task_id, 1, [begun()], reserve=asked)
    wait(poor, 50)
    remove_budget()
    assert tasks.get(poor.task_id)["state"] == "pending"
    with transaction() as connection:
        over = use(20)
        assert budgets.spend(connection, holder.task_id, 1, [begun(status="finished")], used=over) == {"cancel": False}
    with pytest.raises(NotFound, match=r"There is no budget of .* per day"):
        remove_budget()


def test_budget_that_is_raised_keeps_its_use(claim: Any, database: Engine) -> None:
    first = set_budget(tokens=100)
    call(claim(), 60, 60)
    again = set_budget(tokens=200, who="Ann")
    assert (again["id"], again["tokens"], again["created_by"]) == (
        first["id"],
        {"limit": 200, "spent": 60, "reserved": 0},
        "Ann",
    )


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, "must limit something"),
        ({"tokens": 0}, "whole number from 1"),
        ({"tokens": -5}, "whole number from 1"),
        ({"tokens": 10**13}, "whole number from 1"),
        ({"dollars": 0}, "number from 0.000001"),
        ({"dollars": -1}, "number from 0.000001"),
        ({"dollars": float("nan")}, "number from 0.000001"),
        ({"dollars": float("inf")}, "number from 0.000001"),
        ({"tokens": 1, "period": "week"}, "must be one of hour, day, month, not 'week'"),
        ({"tokens": 1, "on_breach": "ask"}, "must be one of wait, fail, alert, not 'ask'"),
        ({"tokens": 1, "timezone": "Mars/Olympus"}, "Unknown time zone 'Mars/Olympus'"),
        ({"tokens": 1, "timezone": "UTC+3"}, "Unknown time zone"),
        ({"tokens": 1, "timezone": ""}, "Unknown time zone"),
        ({"tokens": 1, "scope": "planet"}, "must be one of installation, namespace, agent, key, model"),
        ({"tokens": 1, "name": "A"}, "neither a namespace nor a name"),
        ({"tokens": 1, "scope": "model"}, "must name its model"),
        ({"tokens": 1, "scope": "key", "name": "*"}, "must name one key"),
    ],
)
def test_bad_budgets_are_refused(database: Engine, given: Any, wrong: str) -> None:
    with pytest.raises(InvalidInput, match=wrong):
        set_budget(**given)


# ------------------------------------------------------------------------------------------ at the same time


@pytest.fixture
def wide(settings: Settings) -> Any:
    engine = make_engine(settings, pool_size=24)
    yield engine
    engine.dispose()


Deed = tuple[int, int, bool]
"""Tokens that a call reserves, the share of them that it uses (in tenths), and whether it dies."""
DEEDS = strategies.lists(
    strategies.lists(
        strategies.tuples(strategies.integers(0, 60), strategies.integers(0, 10), strategies.booleans()), max_size=6
    ),
    min_size=2,
    max_size=8,
)


@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(deeds=DEEDS, seed=strategies.integers(0, 99))
def test_concurrent_calls_never_overrun(
    driver: LifecycleDriver, wide: Engine, deeds: list[list[Deed]], seed: int
) -> None:
    """Tasks of several keys call at the same time, some die in a call, a budget is raised, another is removed. What is
    really used never exceeds a limit, and in the end the sums are right."""
    driver.sql("DELETE FROM standing_budgets")
    limits = {"installation": 300, "namespace": 280, "key": 150}
    set_budget(tokens=limits["installation"])
    set_budget("namespace", namespace="default", tokens=limits["namespace"], on_breach="fail")
    set_budget("key", "k0", tokens=limits["key"])
    set_budget("key", "k1", tokens=1000, period="hour")
    tasks = [driver.run(key=f"k{number % 2}") for number in range(len(deeds))]

    def work(number: int) -> list[tuple[int, int]]:
        done = []
        for step, (tokens, share, dies) in enumerate(deeds[number], 1):
            asked = {"step": step, "steps": 1, "tokens": tokens, "microdollars": tokens}
            with wide.begin() as connection:
                flags = budgets.spend(connection, tasks[number], 1, [begun(step)], reserve=asked)
            assert flags is not None
            if "breach" in flags:
                continue
            really = tokens * share // 10
            done.append((tokens, tokens if dies else really))
            if not dies:
                over = {"step": step, "tokens": really, "microdollars": really}
                with wide.begin() as connection:
                    budgets.spend(connection, tasks[number], 1, [begun(step, status="finished")], used=over)
        return done

    def disturb() -> list[tuple[int, int]]:
        chance = random.Random(seed)
        for _ in range(3):
            with wide.begin() as connection:
                standing_budgets.spend_lost(connection)
                standing_budgets.wake(connection)
            set_budget("key", "k1", tokens=chance.randint(500, 2000), period="hour")
        remove_budget("key", "k1", period="hour")
        return []

    with ThreadPoolExecutor(len(deeds) + 1) as threads:
        disturbed = threads.submit(disturb)
        done = list(threads.map(work, range(len(deeds))))
        disturbed.result()
    for task in tasks:
        driver.release(task, how="lost", charged=False)
    assert driver.call(standing_budgets.spend_lost) >= 0
    expected = sum(spent for each in done for _, spent in each)
    of_key = sum(spent for each in done[::2] for _, spent in each)
    for fields, total in (
        ({"scope": "installation"}, expected),
        ({"scope": "namespace"}, expected),
        ({"scope": "key"}, of_key),
    ):
        tokens, reserved, dollars, held = used(driver.engine, **fields)
        assert (tokens, reserved, held) == (total, 0, 0)
        assert dollars == pytest.approx(total / 1_000_000)
        assert total <= limits[fields["scope"]]
    assert driver.sql("SELECT count(*) FROM standing_reservations") == 0
    for task in tasks:
        driver.call(lifecycle.cancel, task, reason="over")


def test_reservation_is_counted_before_its_task_is_deleted(driver: LifecycleDriver, settings: Settings) -> None:
    set_budget(tokens=100)
    task, other = driver.run(), driver.run()
    asked = reservation(60)
    assert driver.call(budgets.spend, task, 1, [begun()], reserve=asked) == {"cancel": False}
    for each in (task, other):
        driver.finish(each)

    def deleted(each: UUID) -> bool:
        list(prune(driver.engine, settings.model_copy(update={"retention_succeeded": 1e-9})))
        return driver.sql("SELECT count(*) FROM tasks WHERE id = :id", id=each) == 0

    wait_until(lambda: deleted(other), "the other task is deleted")
    assert not deleted(task)
    driver.call(standing_budgets.spend_lost)
    assert deleted(task)
    assert used(driver.engine)[:2] == (60, 0)


def test_thousand_concurrent_calls(driver: LifecycleDriver, wide: Engine) -> None:
    set_budget(tokens=600)
    tasks = driver.call(lifecycle.accept, [{"agent": "A", "input": {}}] * 1000)
    claimed = {message.task_id: driver.claim(message.task_id) for message in driver.dispatch()}

    def reserve(task: UUID) -> bool:
        with wide.begin() as connection:
            flags = budgets.spend(connection, task, 1, [begun()], reserve=reservation(1))
        assert flags is not None
        return "breach" not in flags

    with ThreadPoolExecutor(24) as threads:
        granted = list(threads.map(reserve, [each.task_id for each in tasks]))
    assert len(claimed) == 1000
    assert sum(granted) == 600
    assert used(driver.engine)[:2] == (0, 600)


def test_refusal_concurrent_with_raise_is_woken(driver: LifecycleDriver, tasks: Tasks) -> None:
    """The raise is committed after the refusal, and before the task waits."""
    set_budget(tokens=10)
    task = driver.run()
    asked = reservation(30)
    breach = driver.call(budgets.spend, task, 1, [begun()], reserve=asked)["breach"]
    set_budget(tokens=50)
    error = {"error": budgets.exceeded(breach).as_dict()}
    driver.call(lifecycle.snooze, task, 1, error, delay=None, reason="budget")
    assert (wake(), driver.state(task)) == (1, "pending")


def test_removal_waits_for_a_call_that_reserves(driver: LifecycleDriver) -> None:
    set_budget(tokens=100)
    task = driver.run()
    asked = reservation(30)

    def blocked() -> bool:
        with driver.engine.connect() as connection:
            return bool(connection.scalar(BLOCKED, {"what": "DELETE FROM standing_budgets%"}))

    with ThreadPoolExecutor(1) as threads:
        with driver.engine.begin() as connection:
            budgets.spend(connection, task, 1, [begun()], reserve=asked)
            removed = threads.submit(remove_budget)
            wait_until(blocked, "the removal waits")
        removed.result()
    over = use(30)
    assert driver.call(budgets.spend, task, 1, [begun(status="finished")], used=over) == {"cancel": False}
    assert driver.sql("SELECT count(*) FROM standing_usage") == 0
