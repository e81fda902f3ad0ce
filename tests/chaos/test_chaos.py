"""The short version of the fault suite, and tests that its audit notices broken promises.

`make chaos` plays every scenario with thousands of tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from tests.chaos import audit
from tests.chaos.scenarios import BY_NAME, play
from tests.support.lifecycle_driver import LifecycleDriver

SEED = 1
TASKS = 80
INPUT = {"seconds": 0}
SHORT = (
    "kill-everything",
    "redis-restart-empty",
    "messages-three-times",
    "postgres-restart",
    "postgres-clock",
    "freeze-worker",
)


@pytest.mark.parametrize("name", SHORT)
def test_scenario_keeps_every_promise(name: str) -> None:
    result = play(replace(BY_NAME[name], strikes=1), TASKS, SEED, lease=1.0, forked=sys.platform == "linux")
    print(f"seed {SEED}: {result}")
    if result.skipped:
        pytest.skip(result.skipped)
    assert result.broken() == []


def commit(driver: LifecycleDriver, task: object, claim: int) -> bool:
    """Commit the effect of the test tool."""
    return bool(driver.sql("SELECT chaos_commit(:task, :claim, CAST(:task AS text))", task=task, claim=claim))


def broken(engine: Engine, submitted: int = 1) -> list[str]:
    with engine.connect() as connection:
        return [promise.partition(":")[0] for promise in audit.examine(connection).broken(submitted)]


def remove_fence(driver: LifecycleDriver) -> None:
    driver.sql(
        "CREATE OR REPLACE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
    )


def test_task_with_a_lost_claim_breaks_no_promise(driver: LifecycleDriver) -> None:
    task = driver.run("chaos", input=INPUT)
    driver.release(task, how="lost", charged=False)
    assert driver.again(task) == 2
    assert not commit(driver, task, 1)
    assert commit(driver, task, 2)
    driver.finish(task, 2)
    assert broken(driver.engine) == []


def lose_task(driver: LifecycleDriver) -> None:
    task = driver.submit("chaos", input=INPUT)
    driver.sql("DELETE FROM tasks WHERE id = :task", task=task)


def forget_message(driver: LifecycleDriver) -> None:
    driver.submit("chaos", input=INPUT)
    driver.dispatch()


def fail(driver: LifecycleDriver) -> None:
    task = driver.run("chaos", input=INPUT)
    commit(driver, task, 1)
    driver.release(task, charged=True, how="retried")
    driver.sql("UPDATE task_status SET state = 'cancelled' WHERE task_id = :task", task=task)


def finish_without_effect(driver: LifecycleDriver) -> None:
    driver.finish(driver.run("chaos", input=INPUT))


def commit_twice(driver: LifecycleDriver) -> None:
    task = driver.run("chaos", input=INPUT)
    commit(driver, task, 1)
    driver.sql("SELECT chaos_commit(:task, 1, 'another key')", task=task)
    driver.finish(task)


def commit_behind_the_fence(driver: LifecycleDriver) -> None:
    remove_fence(driver)
    task = driver.run("chaos", input=INPUT)
    driver.release(task, how="lost", charged=False)
    driver.again(task)
    commit(driver, task, 1)
    driver.finish(task, 2)


def finish_twice(driver: LifecycleDriver) -> None:
    remove_fence(driver)
    driver.sql("ALTER TABLE task_outcomes DROP CONSTRAINT task_outcomes_pkey CASCADE")
    task = driver.run("chaos", input=INPUT)
    commit(driver, task, 1)
    driver.finish(task)
    driver.finish(task)


def skip_a_state(driver: LifecycleDriver) -> None:
    driver.sql("DROP TRIGGER task_status_transition ON task_status")
    task = driver.submit("chaos", input=INPUT)
    for state, reason in (("waiting", "subtask"), ("pending", None)):
        change = "UPDATE task_status SET state = :state, wait_reason = :reason WHERE task_id = :task"
        driver.sql(change, state=state, reason=reason, task=task)
    driver.again(task)
    commit(driver, task, 1)
    driver.finish(task)


def leave_an_execution_open(driver: LifecycleDriver) -> None:
    task = driver.run("chaos", input=INPUT)
    commit(driver, task, 1)
    driver.finish(task)
    driver.sql("UPDATE executions SET outcome = 'running', finished_at = NULL WHERE task_id = :task", task=task)


@pytest.mark.parametrize(
    ("break_it", "seen"),
    [
        (lose_task, {"accepted", "finished"}),
        (forget_message, {"finished", "stuck"}),
        (fail, {"finished", "failed"}),
        (finish_without_effect, {"effects_missing"}),
        (commit_twice, {"effects_double"}),
        (commit_behind_the_fence, {"fenced_effects"}),
        (finish_twice, {"finished_twice", "illegal_transitions"}),
        (skip_a_state, {"illegal_transitions"}),
        (leave_an_execution_open, {"left_open"}),
    ],
)
def test_audit_notices_a_broken_promise(
    driver: LifecycleDriver, break_it: Callable[[LifecycleDriver], None], seen: set[str]
) -> None:
    break_it(driver)
    assert set(broken(driver.engine)) == seen
