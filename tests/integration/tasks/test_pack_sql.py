"""Claims and ends of packs leave the same rows as those of single tasks, and leave alone what needs more."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.tasks import lifecycle
from shared.tasks.records import ExecutionResult
from shared.tasks.states import State
from tests.support.lifecycle_driver import LifecycleDriver, concurrently
from tests.support.plans import nodes_of, plans_of, rows_read

STEP: Any = {
    "number": 1, "kind": "tool_call", "name": "echo", "status": "finished", "effect": "pure", "request_hash": "h",
    "input": {"b": 1, "a": 2}, "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:00:01+00:00",
    "output": {"z": 1, "yy": 2}, "stdout": "said", "usage": {"input_tokens": 3}, "cost_microdollars": 4,
    "program": 1, "line": 2,
}  # fmt: skip
RESULT: ExecutionResult = {
    "steps": [STEP], "output": {"z": [1, None], "yy": "ü"}, "messages": [], "cpu_seconds": 0.5,
    "peak_memory_bytes": 7, "input_tokens": 3, "output_tokens": 2, "cost_microdollars": 4,
}  # fmt: skip
TABLES = ("task_status", "executions", "steps", "task_outcomes", "task_events", "unique_tasks", "webhook_deliveries")
REMOTE_CALLS = """
    INSERT INTO remote_calls (task_id, step, remote_id, state, result,
                              namespace, server, server_version_id, poll_seconds)
        SELECT task_id, v.*, 'default', 'ci', gen_random_uuid(), 5
            FROM task_status,
                 (VALUES (1, 'x', 'working', NULL), (2, NULL, 'answered', NULL), (3, 'x', 'done', '{}')) AS v
"""
# Ids, times and random values differ in any case.
OWN = {"task_id", "id", "webhook_id", "stream_key", "rank"}


def claim_pack(driver: LifecycleDriver, tasks: list[UUID], expected: int = 0, worker: UUID | None = None) -> set[UUID]:
    rows = driver.call(lifecycle.claim_pack, [(str(task), expected) for task in tasks], worker or driver.worker)
    return {UUID(row["id"]) for row in rows}


def finish_pack(driver: LifecycleDriver, tasks: list[UUID], claim: int = 1, result: Any = RESULT) -> set[UUID]:
    ends = [{**lifecycle.ended(task, claim, result), "seconds_ago": 0.0} for task in tasks]
    return driver.call(lifecycle.finish_pack, json.dumps(ends))


def rows_of(driver: LifecycleDriver, task: UUID) -> dict[str, Any]:
    """Everything that is stored about a task, without what differs in any case."""
    with driver.engine.connect() as connection:
        found = {
            table: connection.scalars(
                text(f"SELECT to_jsonb(t) FROM {table} t WHERE task_id = :task ORDER BY to_jsonb(t)::text"),
                {"task": task},
            ).all()
            for table in TABLES
        }
    own = {"unique_tasks": OWN | {"key"}}
    return {
        table: [
            {
                name: value is not None if name == "ended_in" else value
                for name, value in row.items()
                if name not in own.get(table, OWN) and not name.endswith("_at")
            }
            for row in rows
        ]
        for table, rows in found.items()
    }


@pytest.mark.parametrize(
    ("fields", "result"),
    [
        ({}, RESULT),
        ({"key": "tenant", "priority": 5, "labels": {"a": "b"}}, {**RESULT, "output": None}),
        ({"unique_key": "u{}", "unique_while": "running"}, {**RESULT, "output": "x" * 70_000}),
        ({"unique_key": "u{}", "unique_while": "pending"}, {**RESULT, "steps": []}),
        ({"deadline": "2100-01-01T00:00:00Z"}, {"output": 1}),
    ],
)
def test_pack_leaves_the_rows_of_single_tasks(driver: LifecycleDriver, fields: dict[str, Any], result: Any) -> None:
    driver.sql("INSERT INTO webhooks (name, url, secret, states) VALUES ('w', 'http://x', 's', '{}')")
    alone, *packed = [
        driver.submit(**{name: value.format(n) if isinstance(value, str) else value for name, value in fields.items()})
        for n in range(4)
    ]
    driver.dispatch()
    claimed = driver.claim(alone)
    rows = driver.call(lifecycle.claim_pack, [(str(task), 0) for task in packed], driver.worker)
    assert {UUID(row["id"]) for row in rows} == set(packed)
    assert claimed is not None
    assert {row.keys() == claimed.keys() for row in map(dict, rows)} == {True}
    assert rows_of(driver, packed[0]) == rows_of(driver, alone)
    assert driver.finish(alone, **result) == State.SUCCEEDED
    assert finish_pack(driver, packed, result=result) == set(packed)
    assert [rows_of(driver, task) for task in packed] == [rows_of(driver, alone)] * 3


def test_pack_ends_calls_that_a_server_would_finish(driver: LifecycleDriver) -> None:
    """A task that waited for such a call may run in a pack when it continues."""
    packed, other = [driver.submit(), driver.submit()], driver.run()
    driver.dispatch()
    assert claim_pack(driver, packed) == set(packed)
    driver.sql(REMOTE_CALLS)
    assert finish_pack(driver, packed) == set(packed)
    left = "SELECT array_agg(state ORDER BY step) FROM remote_calls WHERE task_id = :task"
    assert [driver.sql(left, task=task) for task in packed] == [["cancelling"]] * 2
    assert driver.sql(left, task=other) == ["working", "answered", "done"]


def test_sub_tasks_of_a_pack_wake_their_parents_once(driver: LifecycleDriver) -> None:
    parents = [driver.run(), driver.run()]
    children = [child for parent in parents for child in driver.suspend(parent, children="BBB")]
    driver.dispatch()
    assert claim_pack(driver, children) == set(children)
    assert finish_pack(driver, children[:4]) == set(children[:4])
    assert [driver.state(parent) for parent in parents] == ["pending", "waiting"]
    assert finish_pack(driver, children[4:]) == set(children[4:])
    assert [driver.state(parent) for parent in parents] == ["pending", "pending"]
    numbers = driver.sql("SELECT array_agg(number ORDER BY number) FROM task_events WHERE task_id = :t", t=parents[0])
    assert numbers == [*range(2, 2 + len(numbers))]


@pytest.mark.parametrize("seed", range(4))
def test_packs_and_other_ends_in_the_same_trees_have_no_deadlock(driver: LifecycleDriver, seed: int) -> None:
    """All lock parents before their sub-tasks, and tasks of one generation by their ids."""
    roots = [driver.run(), driver.run()]
    middle = [child for root in roots for child in driver.suspend(root, children="BBBB")]
    driver.dispatch()
    claim_pack(driver, middle)
    leaves = [leaf for task in [*middle[:3], *middle[4:7]] for leaf in driver.suspend(task, children="BBB")]
    driver.dispatch()
    running = [*leaves, middle[3], middle[7]]
    claim_pack(driver, running)
    shuffle = random.Random(seed).shuffle
    shuffle(running)
    calls: list[Callable[[], object]] = [
        lambda: finish_pack(driver, running[:10]),
        lambda: finish_pack(driver, running[9::-1]),
        lambda: finish_pack(driver, running[5:15]),
        lambda: driver.finish(running[15]),
        lambda: driver.release(running[16]),
        lambda: driver.call(lifecycle.cancel, middle[1], reason="Test."),
        lambda: driver.call(lifecycle.cancel, roots[0], reason="Test."),
        lambda: driver.call(lifecycle.cancel, middle[5], reason="Test."),
    ]
    shuffle(calls)
    concurrently(*calls)
    finish_pack(driver, running)
    for task in running:
        driver.finish(task)
    assert {driver.state(task) for task in running} <= {"succeeded", "cancelled", "pending"}
    assert {driver.state(task) for task in (roots[0], middle[1], middle[5])} == {"cancelled"}


def test_only_tasks_that_may_start_are_claimed_together(driver: LifecycleDriver) -> None:
    good, stale, cancelled, talking, large = (
        driver.submit(), driver.submit(), driver.submit(), driver.submit(conversation_id="c"),
        driver.submit(input={str(n): f"{n ** 9}" for n in range(3000)}),
    )  # fmt: skip
    driver.dispatch()
    assert driver.claim(stale)
    driver.call(lifecycle.cancel, cancelled, reason="test")
    assert claim_pack(driver, [good, stale, cancelled, talking, large]) == {good}
    assert driver.state(talking) == driver.state(large) == "queued"
    assert claim_pack(driver, [good, stale, cancelled]) == set()


@pytest.mark.parametrize(
    "rule",
    [
        "INSERT INTO pauses (scope, name) VALUES ('agent', 'other')",
        "INSERT INTO limits (scope, name, max_running) VALUES ('key', '*', 1)",
        "UPDATE workers SET status = 'stopped'",
    ],
)
def test_nothing_is_claimed_together_under_a_rule(driver: LifecycleDriver, rule: str) -> None:
    tasks = [driver.submit(), driver.submit()]
    driver.dispatch()
    driver.sql(rule)
    assert claim_pack(driver, tasks) == set()


def test_only_current_claims_are_finished_together(driver: LifecycleDriver) -> None:
    good, cancelled, late, stale, talking = driver.run(), driver.run(), driver.run(), driver.run(), driver.run(
        conversation_id="c"
    )  # fmt: skip
    driver.call(lifecycle.cancel, cancelled, reason="test")
    driver.sql("UPDATE task_status SET deadline = now() - interval '1 s' WHERE task_id = :t", t=late)
    driver.release(stale, how="handed_back", charged=False)
    assert finish_pack(driver, [good, cancelled, late, stale, talking]) == {good}
    assert finish_pack(driver, [good]) == set()
    assert driver.finish(cancelled, **RESULT) == State.CANCELLED
    assert driver.finish(late, **RESULT) == State.EXPIRED
    assert driver.finish(talking, **RESULT) == State.SUCCEEDED
    assert driver.state(stale) == "pending"


def test_end_of_an_earlier_claim_is_not_recorded(driver: LifecycleDriver) -> None:
    good, again = driver.run(), driver.run()
    driver.release(again, how="lost", charged=False)
    driver.dispatch()
    assert claim_pack(driver, [again], expected=0) == set()
    assert claim_pack(driver, [again], expected=1) == {again}
    before = rows_of(driver, again)
    assert finish_pack(driver, [good, again], claim=1) == {good}
    assert rows_of(driver, again) == before
    assert finish_pack(driver, [again], claim=3) == set()
    assert finish_pack(driver, [again], claim=2) == {again}


def test_same_pack_is_claimed_and_finished_once(driver: LifecycleDriver) -> None:
    tasks = [driver.submit() for _ in range(20)]
    driver.dispatch()
    claims = concurrently(*[lambda part=part: claim_pack(driver, part) for part in (tasks, tasks[::-1], tasks[5:])])
    assert sum(map(len, claims)) == len(set().union(*claims)) == 20
    ends = concurrently(*[lambda part=part: finish_pack(driver, part) for part in (tasks, tasks[::-1], tasks[5:])])
    assert sum(map(len, ends)) == len(set().union(*ends)) == 20


def test_unclaimed_task_goes_back_to_pending(driver: LifecycleDriver) -> None:
    task = driver.submit()
    driver.dispatch()
    assert not driver.call(lifecycle.unqueue, task, 1)
    assert driver.call(lifecycle.unqueue, task, 0)
    assert driver.state(task) == "pending"
    driver.dispatch()
    assert driver.claim(task)
    assert not driver.call(lifecycle.unqueue, task, 0)


def test_packs_read_little_of_large_tables(driver: LifecycleDriver) -> None:
    # The plans of this session are made while the tables are small.
    with driver.engine.connect() as connection:
        first = [driver.submit() for _ in range(3)]
        driver.dispatch()
        for _ in range(8):
            rows = lifecycle.claim_pack(connection, [(str(task), 0) for task in first], driver.worker)
            lifecycle.finish_pack(connection, json.dumps([lifecycle.ended(task, 1, RESULT) for task in first]))
            connection.rollback()
        assert len(rows) == 3
        tasks = [driver.submit() for _ in range(400)]
        driver.dispatch()
        claim_pack(driver, tasks[:300])
        finish_pack(driver, tasks[:250])
        pack = tasks[300:320]
        plans = plans_of(
            connection,
            lambda: lifecycle.claim_pack(connection, [(str(task), 0) for task in pack], driver.worker),
        )
        ends = json.dumps([lifecycle.ended(task, 1, RESULT) for task in pack])
        plans += plans_of(connection, lambda: lifecycle.finish_pack(connection, ends))
        connection.rollback()
    big = {"tasks", "task_status", "executions", "steps", "task_outcomes", "task_events"}
    assert not [what for plan in plans for what in nodes_of(plan) if what[0] == "Seq Scan" and what[1] in big]
    assert sum(rows_read(plan) for plan in plans) < 8 * len(pack) ** 2
