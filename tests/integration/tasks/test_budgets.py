"""Budgets: the tasks below a budget never use more than it allows, despite crashes and concurrency."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi
from orchestrator.explain import explain
from orchestrator.maintenance.budget_keeper import BudgetKeeper
from orchestrator.monitors import Monitors
from shared.broker import make_app
from shared.contracts.requests import Budget, BudgetChange
from shared.database.connections import make_engine, transaction
from shared.errors import BudgetExceeded, Conflict, InvalidInput, ModelError, ModelUnavailable
from shared.settings import Settings
from shared.tasks import budgets, lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import wait_until
from workers import minion
from workers.journal import Journal
from workers.outcomes import Postponed
from workers.pricing import Reservation, worst_case
from workers.steps import StepResult
from workers.task import ClaimedTask

BELOW = text("SELECT id FROM tasks WHERE parent_id = :parent ORDER BY id")
WRITTEN = text("SELECT sum(tokens), sum(microdollars), sum(steps) FROM reservations WHERE budget_task_id = :task")
SUBMIT = text("SELECT minion_submit('Act', budget => CAST(:given AS jsonb))")
BLOCKED = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :what")
SPENT = text("SELECT spent_tokens, spent_microdollars, spent_steps FROM budgets WHERE task_id = :task")


@pytest.fixture
def claim(tasks: Tasks, inline_worker: InlineWorker, act: Any) -> Any:
    """Claims a task, a new one with a budget or one that was released: `claim(tokens=10)`, `claim(task)`."""
    act()

    def take(task: UUID | None = None, **budget: Any) -> Journal:
        if task is None:
            task = tasks.submit("Act", {}, budget=Budget(**budget))
        elif tasks.get(task)["state"] == "running":
            with transaction() as connection:
                lifecycle.release(connection, task, tasks.get(task)["claim"], how="handed_back", charged=False)
        [message] = inline_worker.dispatch()
        with transaction() as connection:
            row = lifecycle.claim(connection, task, message.claim, inline_worker.id)
        assert row is not None
        return minion.journal_of(ClaimedTask.of(row))

    return take


def call(
    journal: Journal, tokens: int, used: int | BaseException = 0, *, dollars: int | None = 0, pure: bool = False
) -> Any:
    """Run a step with this reservation and this usage, in tokens and micro-dollars."""

    def perform(step: int) -> StepResult:
        if isinstance(used, BaseException):
            raise used
        return StepResult("done", input_tokens=used, cost_microdollars=used if dollars else 0)

    reserve = None if pure else (lambda: Reservation(tokens, dollars))
    return journal.call("model_call", "m", None, perform, effect="pure" if pure else "idempotent", reserve=reserve)


def spent(engine: Engine, task: UUID) -> tuple[int, int, int]:
    with engine.connect() as connection:
        return tuple(connection.execute(SPENT, {"task": task}).one())


def change(task: UUID, **asked: Any) -> UUID:
    with transaction() as connection:
        return budgets.change(connection, task, BudgetChange(**asked))


def why(engine: Engine, task: UUID) -> Any:
    with engine.connect() as connection:
        return explain(connection, task, lease=10)


@pytest.mark.parametrize("on_breach", ["ask", "fail"])
@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"tokens": 100}, "50 of 100 tokens are spent, and the step may take 60 tokens"),
        ({"dollars": 0.0001}, "$0.00005 of $0.0001 are spent, and the step may take $0.00006"),
        ({"steps": 1}, "1 of 1 steps are spent"),
    ],
)
def test_a_step_that_does_not_fit_is_not_begun(
    claim: Any, database: Engine, tasks: Tasks, limits: Any, told: str, on_breach: str
) -> None:
    journal = claim(**limits, on_breach=on_breach)
    assert call(journal, 100, 50, dollars=100) == "done"
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, 60, dollars=60)
    assert told in caught.value.message
    assert caught.value.detail["then"] == on_breach
    assert spent(database, journal.task_id) == (50, 50, 1)
    assert [step["status"] for step in tasks.steps(journal.task_id)] == ["finished"]


def test_pure_steps_count_too(claim: Any) -> None:
    journal = claim(steps=2)
    call(journal, 0, pure=True)
    call(journal, 0, pure=True)
    with pytest.raises(BudgetExceeded, match="2 of 2 steps"):
        call(journal, 0, pure=True)


def test_time_is_counted_from_the_first_start(claim: Any, database: Engine) -> None:
    journal = claim(seconds=60)
    call(journal, 0)
    with database.begin() as connection:
        connection.execute(text("UPDATE executions SET started_at = started_at - interval '61 s'"))
    with pytest.raises(BudgetExceeded, match=r"61\.\d of 60\.0 seconds are spent\. `minion budget"):
        call(journal, 0)
    change(journal.task_id, add_seconds=60)
    assert call(claim(journal.task_id), 0) == "done"


def test_unknown_usage_after_crash_stays_spent(claim: Any, database: Engine, tasks: Tasks) -> None:
    journal = claim(tokens=100)
    with pytest.raises(KeyboardInterrupt):
        call(journal, 60, KeyboardInterrupt())
    again = claim(journal.task_id)
    with pytest.raises(BudgetExceeded, match="60 of 100 tokens are spent, and the step may take 60"):
        call(again, 60)
    change(journal.task_id, add_tokens=20)
    call(claim(journal.task_id), 60, 10)
    assert spent(database, journal.task_id) == (70, 0, 1)


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (ModelError("refused", http_status=400), 0),
        (ModelUnavailable("cut off", cost_unknown=True), 60),
        (Postponed(60, "model_unavailable", ModelUnavailable("overloaded")), 0),
        (Postponed(60, "model_unavailable", ModelUnavailable("cut off", cost_unknown=True)), 60),
    ],
)
def test_refused_call_releases_its_reservation(claim: Any, database: Engine, failure: Exception, left: int) -> None:
    journal = claim(tokens=100)
    with pytest.raises(type(failure)):
        call(journal, 60, failure)
    assert spent(database, journal.task_id)[0] == left


def test_step_requested_twice_by_one_claim_counts_once(claim: Any, database: Engine) -> None:
    """A connection may be lost after the commit, and the write is retried."""
    journal = claim(tokens=100)
    with transaction() as connection:
        for _ in range(2):
            asked = {"step": 1, "steps": 1, "tokens": 60, "microdollars": 0}
            assert budgets.spend(connection, journal.task_id, journal.claim, [], reserve=asked) == {"cancel": False}
        for _ in range(2):
            used = {"step": 1, "tokens": 10, "microdollars": 0}
            budgets.spend(connection, journal.task_id, journal.claim, [], used=used)
    assert spent(database, journal.task_id) == (10, 0, 1)


def test_unknown_price_fails_dollar_budgets_only(claim: Any) -> None:
    assert call(claim(tokens=100), 60, 10, dollars=None) == "done"
    with pytest.raises(BudgetExceeded, match="the price of the model that this step calls is not known") as caught:
        call(claim(dollars=1.0), 60, dollars=None)
    assert caught.value.detail["then"] == "fail"


def test_worst_case_is_full_answer_and_cache_write() -> None:
    assert worst_case("claude-sonnet-4-5", 1000, 1000) == Reservation(2000, 3750 + 15000)
    assert worst_case("offline", 10, 10) == Reservation(20, 0)
    assert worst_case("nobody-s-model", 10, 10) == Reservation(20, None)


# ------------------------------------------------------------------------------------------ lineage


@pytest.fixture
def chain(act: Any, define: Define) -> str:
    """Two agents one after the other: four steps in all."""
    act("First")
    act("Second")
    relations = [{"agent": "First"}, {"agent": "Second"}]
    config = {"capabilities": ["work"]}
    define({"kind": "agent", "name": "Chain", "type": "function", "relations": relations, "config": config})
    return "Chain"


def run_due(inline_worker: InlineWorker) -> None:
    """Runs what is due until nothing is."""
    while messages := inline_worker.dispatch():
        for message in messages:
            minion.run(message.task_id, message.claim, inline_worker.id)


def test_budget_holds_for_sub_tasks_and_continues_after_raise(
    chain: str, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    root = tasks.submit(chain, {}, budget=Budget(steps=3))
    run_due(inline_worker)
    [first, second] = tasks.children(root)
    assert (first["state"], second["state"], second["wait_reason"]) == ("succeeded", "waiting", "budget")
    assert second["budget"] is None
    told = why(database, second["id"])
    assert told.reason == "budget"
    assert f"The budget of task {root} (Chain) has no room for the next step: 3 of 3 steps are spent" in told.sentence
    assert told.todo == f"`minion budget {root} --add-steps N` raises it; with --stop, the task fails."
    assert change(second["id"], add_steps=1) == root
    run_due(inline_worker)
    assert tasks.get(root)["state"] == "succeeded"
    assert tasks.get(root)["budget"]["steps"] == {"limit": 4, "spent": 4}
    assert [execution["outcome"] for execution in tasks.executions(second["id"])] == ["suspended", "succeeded"]
    assert tasks.get(second["id"])["attempts"] == 0
    with pytest.raises(Conflict, match="has ended"):
        change(root, add_steps=1)


def test_too_small_raise_wakes_no_task(claim: Any, tasks: Tasks, inline_worker: InlineWorker, database: Engine) -> None:
    journal = claim(tokens=10)
    wait_for_budget(journal, 30)
    change(journal.task_id, add_tokens=10)
    assert tasks.get(journal.task_id)["state"] == "waiting"
    change(journal.task_id, add_tokens=10)
    assert tasks.get(journal.task_id)["state"] == "pending"


def wait_for_budget(journal: Journal, tokens: int) -> None:
    """Suspend a task whose next step does not fit, as the minion does."""
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, tokens)
    with transaction() as connection:
        result = {"error": caught.value.as_dict()}
        lifecycle.snooze(connection, journal.task_id, journal.claim, result, delay=None, reason="budget")


def test_stopping_budget_fails_waiting_task(chain: str, tasks: Tasks, inline_worker: InlineWorker) -> None:
    root = tasks.submit(chain, {}, budget=Budget(steps=3))
    run_due(inline_worker)
    change(root, stop=True)
    run_due(inline_worker)
    [_, second] = tasks.children(root)
    assert second["error"]["type"] == "budget_exceeded"
    assert tasks.get(root)["error"]["cause"]["error"]["type"] == "budget_exceeded"


def test_a_breach_that_fails_is_not_retried(chain: str, tasks: Tasks, inline_worker: InlineWorker) -> None:
    root = tasks.submit(chain, {}, budget=Budget(steps=1, on_breach="fail"))
    inline_worker.run_all()
    [first] = tasks.children(root)
    assert (first["state"], first["error"]["type"], first["claim"]) == ("failed", "budget_exceeded", 1)
    assert first["error"] | {"at": None} == first["error"] | {
        "at": None,
        "budget": str(root),
        "agent": "Chain",
        "what": "steps",
        "limit": 1,
        "spent": 1,
        "asked": 1,
    }
    assert "Submit it again with more steps in its `budget`." in first["error"]["message"]


def test_the_narrower_of_two_budgets_holds(
    claim: Any, tasks: Tasks, inline_worker: InlineWorker, act: Any, database: Engine
) -> None:
    """An agent's own budget, and that of the task above it."""
    act("Narrow", config={"budget": {"tokens": 10}})
    parent = claim(tokens=100)
    child = below(parent, "Narrow")
    journal = claim(child)
    call(journal, 8, 8)
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, 8)
    assert caught.value.detail["budget"] == str(child)
    assert (spent(database, child)[0], spent(database, parent.task_id)[0]) == (8, 8)
    # The root comes first where both are too small.
    with pytest.raises(BudgetExceeded) as caught:
        call(journal, 800)
    assert caught.value.detail["budget"] == str(parent.task_id)


def below(parent: Journal, agent: str, how_many: int = 1) -> Any:
    """Suspends a task for sub-tasks of an agent; returns their ids."""
    children = [
        {"step": 1 + n, "name": agent, "request_hash": "h", "request": {"agent": agent, "input": {}}}
        for n in range(how_many)
    ]
    with transaction() as connection:
        lifecycle.suspend(connection, parent.task_id, parent.claim, {}, children)
        ids = list(connection.scalars(BELOW, {"parent": parent.task_id}))
    return ids[0] if how_many == 1 else ids


def test_reserved_budget_is_awaited_without_a_decision(
    claim: Any, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    parent = claim(tokens=100, on_breach="fail")
    one, two = below(parent, "Act", 2)
    first, second = (minion.journal_of(ClaimedTask.of(row)) for row in claimed(inline_worker, one, two))
    with transaction() as connection:
        asked = {"step": 1, "steps": 1, "tokens": 80, "microdollars": 0}
        budgets.spend(connection, one, first.claim, [], reserve=asked)
    assert tasks.get(parent.task_id)["budget"]["tokens"] == {"limit": 100, "spent": 0, "reserved": 80}
    wait_for_budget(second, 50)
    assert "running steps hold up to 80 tokens" in why(database, two).sentence
    assert "It continues when those steps have ended" in why(database, two).sentence
    with transaction() as connection:
        assert budgets.wake_funded(connection) == 0
        budgets.spend(connection, one, first.claim, [], used={"step": 1, "tokens": 10, "microdollars": 0})
    assert "room for its next step again" in why(database, two).sentence
    with transaction() as connection:
        assert budgets.wake_funded(connection) == 1
    assert tasks.get(two)["state"] == "pending"


def claimed(inline_worker: InlineWorker, *ids: UUID) -> list[dict[str, Any]]:
    claims = {message.task_id: message.claim for message in inline_worker.dispatch()}
    with transaction() as connection:
        rows = [lifecycle.claim(connection, each, claims[each], inline_worker.id) for each in ids]
    return [row for row in rows if row is not None]


def test_waiting_task_fails_when_the_holder_is_lost(claim: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    parent = claim(tokens=100, on_breach="fail")
    one, two = below(parent, "Act", 2)
    first, second = (minion.journal_of(ClaimedTask.of(row)) for row in claimed(inline_worker, one, two))
    with pytest.raises(KeyboardInterrupt):
        call(first, 80, KeyboardInterrupt())
    wait_for_budget(second, 50)
    with transaction() as connection:
        lifecycle.release(connection, one, first.claim, how="lost", charged=False)
        assert budgets.wake_funded(connection) == 1
    with pytest.raises(BudgetExceeded) as caught:
        call(claimed_again(inline_worker, two), 50)
    assert caught.value.detail["then"] == "fail"


def claimed_again(inline_worker: InlineWorker, task: UUID) -> Journal:
    [row] = claimed(inline_worker, task)
    return minion.journal_of(ClaimedTask.of(row))


def blocked(engine: Engine, what: str) -> bool:
    """Return whether a statement waits for a lock."""
    with engine.connect() as connection:
        return bool(connection.scalar(BLOCKED, {"what": f"%{what}%"}))


def test_raise_concurrent_with_refusal_wakes_the_task(claim: Any, tasks: Tasks, database: Engine) -> None:
    """The raise waits for the lock, and has looked for tasks to wake before this task is suspended."""
    journal = claim(tokens=10)
    with ThreadPoolExecutor(1) as threads:
        with database.begin() as refused:
            refused.execute(text("SELECT minion_lock_budgets(ARRAY[CAST(:task AS uuid)])"), {"task": journal.task_id})
            raised = threads.submit(change, journal.task_id, add_tokens=20)
            wait_until(lambda: blocked(database, "minion_change_budget"), "the raise waits")
            asked = {"step": 1, "steps": 1, "tokens": 30, "microdollars": 0}
            flags = budgets.spend(refused, journal.task_id, journal.claim, [], reserve=asked)
        raised.result()
    assert flags is not None
    with transaction() as connection:
        error = {"error": budgets.exceeded(flags["breach"]).as_dict()}
        lifecycle.snooze(connection, journal.task_id, journal.claim, error, delay=None, reason="budget")
        assert budgets.wake_funded(connection) == 1
    assert tasks.get(journal.task_id)["state"] == "pending"


def test_two_raises_at_once_both_count(claim: Any, tasks: Tasks, database: Engine) -> None:
    journal = claim(seconds=60)
    with ThreadPoolExecutor(1) as threads:
        with database.begin() as first:
            budgets.change(first, journal.task_id, BudgetChange(add_seconds=60))
            second = threads.submit(change, journal.task_id, add_seconds=60)
            wait_until(lambda: blocked(database, "minion_change_budget"), "the second raise waits")
        second.result()
    assert tasks.get(journal.task_id)["budget"]["seconds"]["limit"] == 180


def test_waiting_tasks_that_do_not_fit_block_no_other(claim: Any, tasks: Tasks, database: Engine) -> None:
    large, small = claim(tokens=10), claim(tokens=10)
    wait_for_budget(large, 500)
    wait_for_budget(small, 20)
    with transaction() as connection:
        connection.execute(text("UPDATE budgets SET tokens = 20, changed_at = clock_timestamp()"))
        assert sum(budgets.wake_funded(connection, limit=1) for _ in range(2)) == 1
    assert tasks.get(small.task_id)["state"] == "pending"
    with transaction() as connection:
        connection.execute(text("UPDATE budgets SET tokens = 500, changed_at = clock_timestamp()"))
        assert budgets.wake_funded(connection) == 1


def test_released_budget_goes_to_next_waiting_task(claim: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    """There is room for one of two. The one that is woken ends without a step, so nothing changes for the other."""
    parent = claim(tokens=100)
    one, two, little = below(parent, "Act", 3)
    journals = [minion.journal_of(ClaimedTask.of(row)) for row in claimed(inline_worker, one, two, little)]
    for journal, tokens in zip(journals, (160, 160, 140), strict=True):
        wait_for_budget(journal, tokens)
    change(parent.task_id, add_tokens=200)
    assert [tasks.get(each)["state"] for each in (one, two, little)] == ["pending", "waiting", "pending"]
    tasks.cancel(one)
    tasks.cancel(little)
    with transaction() as connection:
        assert budgets.wake_funded(connection) == 1
    assert tasks.get(two)["state"] == "pending"


def test_task_with_room_in_one_budget_waits_for_the_other(claim: Any, tasks: Tasks, act: Any) -> None:
    act("Narrow", config={"budget": {"tokens": 10}})
    parent = claim(tokens=15)
    child = below(parent, "Narrow")
    wait_for_budget(claim(child), 20)
    assert change(child, add_tokens=5) == parent.task_id
    assert tasks.get(child)["state"] == "waiting"
    assert change(child, add_tokens=10) == child
    assert tasks.get(child)["state"] == "pending"


def test_replay_gets_a_fresh_equal_budget(chain: str, tasks: Tasks, inline_worker: InlineWorker) -> None:
    root = tasks.submit(chain, {}, budget=Budget(steps=40, dollars=0.5, on_breach="fail"))
    inline_worker.run_all()
    with transaction() as connection:
        [again] = lifecycle.accept(connection, [{"agent": chain, "input": {}, "replay_of": str(root)}])
    assert tasks.get(root)["budget"]["steps"] == {"limit": 40, "spent": 4}
    budget = tasks.get(again.task_id)["budget"]
    assert (budget["steps"], budget["dollars"]["limit"], budget["on_breach"]) == (
        {"limit": 40, "spent": 0},
        0.5,
        "fail",
    )


def test_budget_keeper_fails_overtime_and_wakes_tasks_with_room(
    claim: Any, tasks: Tasks, database: Engine, settings: Settings
) -> None:
    late, poor = claim(seconds=60, on_breach="fail"), claim(tokens=10)
    call(late, 0)
    wait_for_budget(poor, 20)
    keeper = BudgetKeeper(settings, database, Monitors(make_app(settings)))
    keeper.run_once()
    assert (tasks.get(late.task_id)["state"], tasks.get(poor.task_id)["state"]) == ("running", "waiting")
    with transaction() as connection:
        connection.execute(text("UPDATE budgets SET due_at = due_at - interval '61 s'"))
        connection.execute(text("UPDATE executions SET started_at = started_at - interval '61 s'"))
        # As if it had been raised after the breach, and before the task was suspended.
        connection.execute(text("UPDATE budgets SET tokens = 20, changed_at = clock_timestamp() WHERE tokens = 10"))
    keeper.run_once()
    ended = tasks.get(late.task_id)
    assert (ended["state"], ended["error"]["type"], ended["error"]["what"]) == ("failed", "budget_exceeded", "seconds")
    # The worker's main process uses it to find the child to interrupt.
    assert tasks.executions(late.task_id)[0]["outcome"] == "expired"
    assert tasks.get(poor.task_id)["state"] == "pending"


def test_ended_or_queued_task_does_not_block_overtime(claim: Any, tasks: Tasks, database: Engine) -> None:
    ended, queued, late = (claim(seconds=60, on_breach="fail") for _ in range(3))
    for each in (ended, queued, late):
        call(each, 0)
    with transaction() as connection:
        lifecycle.finish(connection, ended.task_id, ended.claim, State.SUCCEEDED, {})
        lifecycle.release(connection, queued.task_id, queued.claim, how="handed_back", charged=False)
        lifecycle.dispatch(connection, lease=3600, window=1000)
        connection.execute(text("UPDATE budgets SET due_at = due_at - interval '61 s'"))
        connection.execute(text("UPDATE executions SET started_at = started_at - interval '61 s'"))
        [(task, error)] = budgets.overtime(connection, limit=1)
        assert (task, error.detail["what"]) == (late.task_id, "seconds")
        due = set(connection.scalars(text("SELECT task_id FROM budgets WHERE due_at IS NOT NULL")))
    assert due == {queued.task_id, late.task_id}


def test_routed_task_gets_the_budget_of_its_agent(
    tasks: Tasks, inline_worker: InlineWorker, act: Any, define: Define
) -> None:
    act("Weather", description="Tells the weather", config={"budget": {"steps": 5}})
    task = tasks.submit(None, messages=["What is the weather like?"])
    assert tasks.get(task)["budget"] is None
    inline_worker.dispatch()
    assert tasks.get(task)["budget"]["steps"]["limit"] == 5


# ------------------------------------------------------------------------------------------ at the same time


def test_twenty_children_never_exceed_the_budget(
    claim: Any, inline_worker: InlineWorker, database: Engine, settings: Settings
) -> None:
    """Each begins steps, finishes some, crashes in others. What is really used never exceeds the limits, and the sums
    are right in the end."""
    parent = claim(tokens=5000, dollars=0.004, steps=130)
    children = below(parent, "Act", 20)
    rows = claimed(inline_worker, *children)
    engine = make_engine(settings, pool_size=20)

    def work(row: dict[str, Any]) -> tuple[int, int, int]:
        chance = random.Random(children.index(UUID(row["id"])))
        really, dollars, begun = 0, 0, 0
        for step in range(1, 11):
            tokens = chance.randint(1, 100)
            asked = {"step": step, "steps": 1, "tokens": tokens, "microdollars": tokens // 2}
            with engine.begin() as connection:
                flags = budgets.spend(connection, UUID(row["id"]), row["claim"], [], reserve=asked)
            if flags is None or flags.get("breach"):
                continue
            begun += 1
            used = chance.choice([0, tokens // 2, tokens])
            really, dollars = really + used, dollars + used // 2
            if chance.random() < 0.8:
                with engine.begin() as connection:
                    over = {"step": step, "tokens": used, "microdollars": used // 2}
                    budgets.spend(connection, UUID(row["id"]), row["claim"], [], used=over)
        return really, dollars, begun

    try:
        with ThreadPoolExecutor(20) as threads:
            sums = [sum(each) for each in zip(*threads.map(work, rows), strict=True)]
    finally:
        engine.dispose()
    tokens, dollars, steps = spent(database, parent.task_id)
    assert sums[0] <= tokens <= 5000
    assert sums[1] <= dollars <= 4000
    assert sums[2] == steps == 130
    with database.connect() as connection:
        assert tuple(connection.execute(WRITTEN, {"task": parent.task_id}).one()) == (tokens, dollars, steps)


def test_twenty_model_agents_stop_at_the_root_budget(
    tasks: Tasks, inline_worker: InlineWorker, define: Define, messages_api: MessagesApi
) -> None:
    messages_api.script = [testing.text("Yes.", usage={"input_tokens": 20, "output_tokens": 80})]
    config = {"capabilities": ["work"], "max_tokens": 100}
    relations = [{"agent": "Model", "for_each": "n"}]
    define(
        {"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "config": config},
        {
            "kind": "agent",
            "name": "Root",
            "type": "function",
            "relations": relations,
            "config": {"capabilities": ["work"], "chain_strategy": "parallel", "on_child_failure": "collect"},
        },
    )
    root = tasks.submit("Root", {"n": list(range(20))}, budget=Budget(tokens=1000, on_breach="fail"))

    def round_trip() -> bool:
        messages = inline_worker.dispatch()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda message: minion.run(message.task_id, message.claim, inline_worker.id), messages))
        with transaction() as connection:
            return bool(budgets.wake_funded(connection) or messages)

    for _ in range(100):
        if not round_trip():
            break
    ended = tasks.get(root)
    assert (ended["state"], ended["budget"]["tokens"]["reserved"]) == ("succeeded", 0)
    # A call uses 100 and reserves a few more for its input: the ninth fits, and the tenth does not.
    assert len(messages_api.requests) == 9
    assert ended["budget"]["tokens"]["spent"] == 900
    assert [child["state"] for child in ended["output"]["results"]].count("succeeded") == 9


# ------------------------------------------------------------------------------------------ ways in


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ('{"tokens": 0}', "it must be a whole number above 0, at most 1000000000000"),
        ('{"tokens": 1.5}', "it must be a whole number above 0"),
        ('{"dollars": "1"}', "it must be a number above 0"),
        ('{"on_breach": "panic", "steps": 1}', r"budget.on_breach is \"panic\""),
        ('{"on_breach": "ask"}', "A budget must limit something"),
        ('{"tokns": 5}', "a budget must have only tokens, dollars, steps, seconds and on_breach"),
        ("[1]", "budget must be an object"),
    ],
)
def test_sql_callers_receive_the_error(act: Any, database: Engine, given: str, fault: str) -> None:
    act()
    with pytest.raises(InvalidInput, match=fault), database.begin() as connection:
        connection.execute(SUBMIT, {"given": given})


def test_sql_callers_set_a_budget(act: Any, database: Engine, tasks: Tasks) -> None:
    act()
    with database.begin() as connection:
        task = connection.scalar(SUBMIT, {"given": '{"dollars": 0.25, "seconds": null}'})
    budget = tasks.get(task)["budget"]
    assert budget["on_breach"] == "ask"
    assert budget["dollars"] == {"limit": 0.25, "spent": 0, "reserved": 0}
    assert budget["seconds"] == {"limit": None, "spent": 0}
