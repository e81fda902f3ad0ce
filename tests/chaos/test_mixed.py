"""The short version of the mixed scenario, and tests that its audit notices each promise that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from orchestrator.replay import replay
from orchestrator.retention.retention import prune
from orchestrator.schedules.scheduler import run_due
from shared.settings import Settings
from shared.tasks.states import State
from tests.chaos import mixed, mixed_audit
from tests.chaos.mixed_audit import Witness
from tests.chaos.mixed_load import EFFECTIVE, TICK
from tests.support.lifecycle_driver import LifecycleDriver

SEED = 34
TASKS = 60

Mistake = Callable[[LifecycleDriver, Witness], None]


@pytest.mark.timeout(900)  # it waits for the start of many processes, one after the other
def test_all_features_keep_their_promises_under_faults() -> None:
    result = mixed.play(TASKS, SEED, lease=1.0, rounds=2)
    print(f"seed {SEED}: {result}")
    assert result.broken() == []


def broken(driver: LifecycleDriver, witness: Witness) -> set[str]:
    with driver.engine.begin() as connection:
        found = mixed_audit.examine(connection, witness, effective=EFFECTIVE, unsafe="unsafe", approved="approved")
    return {line.partition(": broken by")[0] for line in found}


def call(driver: LifecycleDriver, task: object, key: str, claim: int = 1) -> None:
    """Run the test tool: count its call, then commit its effect."""
    driver.sql(
        "INSERT INTO chaos_calls VALUES (gen_random_uuid(), :task, :claim, :key)", task=task, claim=claim, key=key
    )
    driver.sql("SELECT chaos_commit(:task, :claim, :key)", task=task, claim=claim, key=key)


def succeed(driver: LifecycleDriver, task: UUID, key: str | None = None, claim: int = 1) -> None:
    """Finish a run without a fault."""
    call(driver, task, key or str(task), claim)
    driver.finish(task, claim)


def submit(driver: LifecycleDriver, witness: Witness, number: int, agent: str = "plain", **fields: object) -> UUID:
    witness.submitted.append((number, "planted", ("succeeded", "failed", "cancelled")))
    return driver.submit(agent, input={"seconds": 0}, labels={"chaos": str(number)}, **fields)


def run(driver: LifecycleDriver, witness: Witness, number: int, agent: str = "plain", **fields: object) -> UUID:
    task = submit(driver, witness, number, agent, **fields)
    driver.again(task)
    return task


def journal(driver: LifecycleDriver, task: UUID, status: str, kind: str = "model_call") -> None:
    driver.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim) "
        "VALUES (:task, 1, :kind, 'it', :status, '', 1) "
        "ON CONFLICT (task_id, number) DO UPDATE SET status = EXCLUDED.status",
        task=task,
        kind=kind,
        status=status,
    )


def schedule(driver: LifecycleDriver) -> UUID:
    """Create a schedule whose first slot is due."""
    made: UUID = driver.sql(
        "INSERT INTO schedules (name, interval_seconds, missed, request, next_at) "
        "VALUES ('tick', 3600, 'all', CAST(:request AS jsonb), now()) RETURNING id",
        request=str(TICK).replace("'", '"'),
    )
    return made


def tick(driver: LifecycleDriver, made: UUID) -> None:
    """Run the schedule once."""
    for task in driver.call(run_due, made):
        driver.again(task)
        succeed(driver, task, "slot")


def test_faultless_run_breaks_no_promise(driver: LifecycleDriver) -> None:
    witness = Witness(limits={"limited": 1}, listening=False)
    for number in (1, 2):
        succeed(driver, run(driver, witness, number, key="limited", conversation_id="talk"))
    original = run(driver, witness, 3)
    succeed(driver, original, "a key")
    again = driver.call(replay, original, pinned=True, submitted_by="test").task_id
    driver.again(again)
    succeed(driver, again, "a key")
    lost = run(driver, witness, 4, "unsafe")
    call(driver, lost, "once")
    driver.finish(lost)
    tick(driver, schedule(driver))
    journal(driver, original, "started")
    journal(driver, original, "finished")
    witness.asked[3, 0] = 1
    driver.finish(run(driver, witness, 5), state=State.CANCELLED)
    list(prune(driver.engine, Settings(retention_cancelled=1e-9, retention_succeeded=0)))
    assert broken(driver, witness) == set()


def lose_a_submission(driver: LifecycleDriver, witness: Witness) -> None:
    witness.submitted.append((1, "planted", ("succeeded",)))


def double_a_submission(driver: LifecycleDriver, witness: Witness) -> None:
    succeed(driver, run(driver, witness, 1))
    succeed(driver, run(driver, Witness(), 1))


def leave_a_task(driver: LifecycleDriver, witness: Witness) -> None:
    submit(driver, witness, 1)


def fail_a_task(driver: LifecycleDriver, witness: Witness) -> None:
    driver.finish(run(driver, witness, 1), state=State.FAILED)
    witness.submitted[0] = (1, "planted", ("succeeded",))


def call_after_the_claim_is_lost(driver: LifecycleDriver, witness: Witness) -> None:
    driver.sql(
        "CREATE OR REPLACE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
    )
    task = run(driver, witness, 1)
    driver.release(task, how="lost", charged=False)
    driver.again(task)
    call(driver, task, "a key")
    driver.finish(task, 2)


def lose_an_effect(driver: LifecycleDriver, witness: Witness) -> None:
    driver.finish(run(driver, witness, 1))


def change_the_key(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1)
    call(driver, task, "a key")
    call(driver, task, "another key")
    driver.finish(task)


def repeat_an_unsafe_effect(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, "unsafe")
    call(driver, task, "a key")
    driver.release(task, how="lost", charged=False)
    driver.again(task)
    driver.sql("SELECT chaos_commit(:task, 2, 'a key')", task=task)
    driver.finish(task, 2)


def repeat_an_unsafe_call(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, "unsafe")
    driver.sql("INSERT INTO chaos_calls VALUES (gen_random_uuid(), :task, 1, 'a key')", task=task)
    succeed(driver, task, "a key")


def call_without_approval(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, "approved")
    witness.decided.append((str(task), "proposal", "reject"))
    succeed(driver, task)


def exceed_a_limit(driver: LifecycleDriver, witness: Witness) -> None:
    witness.limits["limited"] = 1
    for task in [run(driver, witness, number, key="limited") for number in (1, 2)]:
        succeed(driver, task)


def overrun_tokens(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, budget={"tokens": 2 * mixed_audit.TOKENS_A_CALL})
    journal(driver, task, "started")
    journal(driver, task, "started")
    journal(driver, task, "started")
    witness.asked[1, 0] = 3
    succeed(driver, task)


def overrun_steps(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, budget={"steps": 1})
    driver.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim) "
        "SELECT :task, n, 'tool_call', 'it', 'finished', '', 1 FROM generate_series(1, 2) AS n",
        task=task,
    )
    succeed(driver, task)


def overrun_the_account(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1, budget={"steps": 1})
    driver.sql("UPDATE budgets SET spent_steps = 2 WHERE task_id = :task", task=task)
    driver.sql("UPDATE budgets SET spent_steps = 1 WHERE task_id = :task", task=task)
    succeed(driver, task)


def jump_the_queue(driver: LifecycleDriver, witness: Witness) -> None:
    driver.sql(
        "CREATE OR REPLACE FUNCTION minion_predecessor(t uuid, ns text, conversation text) RETURNS uuid "
        "LANGUAGE sql STABLE AS 'SELECT NULL::uuid'"
    )
    first, second = (submit(driver, witness, number, conversation_id="talk") for number in (1, 2))
    for task in (second, first):
        driver.again(task)
        succeed(driver, task)


def double_a_slot(driver: LifecycleDriver, witness: Witness) -> None:
    made = schedule(driver)
    first = driver.sql("SELECT next_at FROM schedules")
    tick(driver, made)
    driver.sql("DELETE FROM idempotency_keys")
    driver.sql("UPDATE schedules SET next_at = :first", first=first)
    tick(driver, made)


def miss_a_slot(driver: LifecycleDriver, witness: Witness) -> None:
    made = schedule(driver)
    tick(driver, made)
    driver.sql("UPDATE schedules SET next_at = next_at + interval '1 hour'")


def replay_with_other_keys(driver: LifecycleDriver, witness: Witness) -> None:
    original = run(driver, witness, 1)
    succeed(driver, original, "a key")
    again = driver.call(replay, original, pinned=True, submitted_by="test").task_id
    driver.again(again)
    succeed(driver, again, "another key")


def drop_a_webhook(driver: LifecycleDriver, witness: Witness) -> None:
    succeed(driver, run(driver, witness, 1))
    witness.listening = True


def sign_wrongly(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1)
    succeed(driver, task)
    witness.received.append(("message", str(task), "task.succeeded", False))


def prune_too_much(driver: LifecycleDriver, witness: Witness) -> None:
    succeed(driver, run(driver, witness, 1))
    list(prune(driver.engine, Settings(retention_succeeded=1e-9)))


def run_a_step_again(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1)
    for status in ("started", "finished", "started"):
        journal(driver, task, status)
    succeed(driver, task)


def pay_twice(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1)
    journal(driver, task, "started")
    witness.asked[1, 0] = 2
    succeed(driver, task)


def leave_an_execution_open(driver: LifecycleDriver, witness: Witness) -> None:
    task = run(driver, witness, 1)
    succeed(driver, task)
    driver.sql("UPDATE executions SET outcome = 'running', finished_at = NULL WHERE task_id = :task", task=task)


def skip_a_state(driver: LifecycleDriver, witness: Witness) -> None:
    driver.sql("DROP TRIGGER task_status_transition ON task_status")
    task = submit(driver, witness, 1)
    for state, reason in (("waiting", "subtask"), ("pending", None)):
        change = "UPDATE task_status SET state = :state, wait_reason = :reason WHERE task_id = :task"
        driver.sql(change, state=state, reason=reason, task=task)
    driver.again(task)
    succeed(driver, task)


@pytest.mark.parametrize(
    ("mistake", "seen"),
    [
        (lose_a_submission, {"every submission is exactly one task"}),
        (double_a_submission, {"every submission is exactly one task"}),
        (leave_a_task, {"every task ends exactly once"}),
        (fail_a_task, {"tasks end as they should"}),
        (call_after_the_claim_is_lost, {"claims that are lost have no effect"}),
        (lose_an_effect, {"every success has its effect"}),
        (change_the_key, {"a call is repeated only under its key"}),
        (repeat_an_unsafe_effect, {"an unsafe effect happens once"}),
        (repeat_an_unsafe_call, {"an unsafe call is repeated only where a person said so"}),
        (call_without_approval, {"nothing is called that was not approved"}),
        (exceed_a_limit, {"limits hold"}),
        (overrun_tokens, {"budgets are not overrun"}),
        (overrun_steps, {"budgets are not overrun"}),
        (overrun_the_account, {"budgets are not overrun"}),
        (jump_the_queue, {"conversations run in order"}),
        (double_a_slot, {"every slot of a schedule is one task"}),
        (miss_a_slot, {"every slot of a schedule is one task"}),
        (replay_with_other_keys, {"a replay shows the keys of its original"}),
        (drop_a_webhook, {"webhooks deliver every end, signed, under one id"}),
        (sign_wrongly, {"webhooks deliver every end, signed, under one id"}),
        (prune_too_much, {"only what is over is pruned, whole trees at a time"}),
        (run_a_step_again, {"a finished step is not run again"}),
        (pay_twice, {"a model is asked only for a step that was begun"}),
        (leave_an_execution_open, {"no execution is left open"}),
        (skip_a_state, {"transitions are legal"}),
    ],
)
def test_audit_notices_a_mistake(driver: LifecycleDriver, mistake: Mistake, seen: set[str]) -> None:
    witness = Witness(listening=False)
    mistake(driver, witness)
    assert broken(driver, witness) == seen
