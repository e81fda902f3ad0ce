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
from tests.support.lifecycle_driver import LifecycleDriver as ByHand

SEED = 34
TASKS = 60

Mistake = Callable[[ByHand, Witness], None]


@pytest.mark.timeout(900)  # it waits for the start of many processes, one after the other
def test_all_features_keep_their_promises_under_faults() -> None:
    result = mixed.play(TASKS, SEED, lease=1.0, rounds=2)
    print(f"seed {SEED}: {result}")
    assert result.broken() == []


def broken(hand: ByHand, witness: Witness) -> set[str]:
    with hand.engine.begin() as connection:
        found = mixed_audit.examine(connection, witness, effective=EFFECTIVE, unsafe="unsafe", approved="approved")
    return {line.partition(": broken by")[0] for line in found}


def call(hand: ByHand, task: object, key: str, claim: int = 1) -> None:
    """Run the test tool: count its call, then commit its effect."""
    hand.sql("INSERT INTO chaos_calls VALUES (gen_random_uuid(), :task, :claim, :key)", task=task, claim=claim, key=key)
    hand.sql("SELECT chaos_commit(:task, :claim, :key)", task=task, claim=claim, key=key)


def succeed(hand: ByHand, task: UUID, key: str | None = None, claim: int = 1) -> None:
    """Finish a run without a fault."""
    call(hand, task, key or str(task), claim)
    hand.finish(task, claim)


def submit(hand: ByHand, witness: Witness, number: int, agent: str = "plain", **fields: object) -> UUID:
    witness.submitted.append((number, "planted", ("succeeded", "failed", "cancelled")))
    return hand.submit(agent, input={"seconds": 0}, labels={"chaos": str(number)}, **fields)


def run(hand: ByHand, witness: Witness, number: int, agent: str = "plain", **fields: object) -> UUID:
    task = submit(hand, witness, number, agent, **fields)
    hand.again(task)
    return task


def journal(hand: ByHand, task: UUID, status: str, kind: str = "model_call") -> None:
    hand.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim) "
        "VALUES (:task, 1, :kind, 'it', :status, '', 1) "
        "ON CONFLICT (task_id, number) DO UPDATE SET status = EXCLUDED.status",
        task=task,
        kind=kind,
        status=status,
    )


def schedule(hand: ByHand) -> UUID:
    """Create a schedule whose first slot is due."""
    made: UUID = hand.sql(
        "INSERT INTO schedules (name, interval_seconds, missed, request, next_at) "
        "VALUES ('tick', 3600, 'all', CAST(:request AS jsonb), now()) RETURNING id",
        request=str(TICK).replace("'", '"'),
    )
    return made


def tick(hand: ByHand, made: UUID) -> None:
    """Run the schedule once."""
    for task in hand.call(run_due, made):
        hand.again(task)
        succeed(hand, task, "slot")


def test_faultless_run_breaks_no_promise(hand: ByHand) -> None:
    witness = Witness(limits={"limited": 1}, listening=False)
    for number in (1, 2):
        succeed(hand, run(hand, witness, number, key="limited", conversation_id="talk"))
    original = run(hand, witness, 3)
    succeed(hand, original, "a key")
    again = hand.call(replay, original, pinned=True, submitted_by="test").task_id
    hand.again(again)
    succeed(hand, again, "a key")
    lost = run(hand, witness, 4, "unsafe")
    call(hand, lost, "once")
    hand.finish(lost)
    tick(hand, schedule(hand))
    journal(hand, original, "started")
    journal(hand, original, "finished")
    witness.asked[3, 0] = 1
    hand.finish(run(hand, witness, 5), state=State.CANCELLED)
    list(prune(hand.engine, Settings(retention_cancelled=1e-9, retention_succeeded=0)))
    assert broken(hand, witness) == set()


def lose_a_submission(hand: ByHand, witness: Witness) -> None:
    witness.submitted.append((1, "planted", ("succeeded",)))


def double_a_submission(hand: ByHand, witness: Witness) -> None:
    succeed(hand, run(hand, witness, 1))
    succeed(hand, run(hand, Witness(), 1))


def leave_a_task(hand: ByHand, witness: Witness) -> None:
    submit(hand, witness, 1)


def fail_a_task(hand: ByHand, witness: Witness) -> None:
    hand.finish(run(hand, witness, 1), state=State.FAILED)
    witness.submitted[0] = (1, "planted", ("succeeded",))


def call_after_the_claim_is_lost(hand: ByHand, witness: Witness) -> None:
    hand.sql("CREATE OR REPLACE FUNCTION minion_fence(t uuid, c integer) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    task = run(hand, witness, 1)
    hand.release(task, how="lost", charged=False)
    hand.again(task)
    call(hand, task, "a key")
    hand.finish(task, 2)


def lose_an_effect(hand: ByHand, witness: Witness) -> None:
    hand.finish(run(hand, witness, 1))


def change_the_key(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1)
    call(hand, task, "a key")
    call(hand, task, "another key")
    hand.finish(task)


def repeat_an_unsafe_effect(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, "unsafe")
    call(hand, task, "a key")
    hand.release(task, how="lost", charged=False)
    hand.again(task)
    hand.sql("SELECT chaos_commit(:task, 2, 'a key')", task=task)
    hand.finish(task, 2)


def repeat_an_unsafe_call(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, "unsafe")
    hand.sql("INSERT INTO chaos_calls VALUES (gen_random_uuid(), :task, 1, 'a key')", task=task)
    succeed(hand, task, "a key")


def call_without_approval(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, "approved")
    witness.decided.append((str(task), "proposal", "reject"))
    succeed(hand, task)


def exceed_a_limit(hand: ByHand, witness: Witness) -> None:
    witness.limits["limited"] = 1
    for task in [run(hand, witness, number, key="limited") for number in (1, 2)]:
        succeed(hand, task)


def overrun_tokens(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, budget={"tokens": 2 * mixed_audit.TOKENS_A_CALL})
    journal(hand, task, "started")
    journal(hand, task, "started")
    journal(hand, task, "started")
    witness.asked[1, 0] = 3
    succeed(hand, task)


def overrun_steps(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, budget={"steps": 1})
    hand.sql(
        "INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim) "
        "SELECT :task, n, 'tool_call', 'it', 'finished', '', 1 FROM generate_series(1, 2) AS n",
        task=task,
    )
    succeed(hand, task)


def overrun_the_account(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1, budget={"steps": 1})
    hand.sql("UPDATE budgets SET spent_steps = 2 WHERE task_id = :task", task=task)
    hand.sql("UPDATE budgets SET spent_steps = 1 WHERE task_id = :task", task=task)
    succeed(hand, task)


def jump_the_queue(hand: ByHand, witness: Witness) -> None:
    hand.sql(
        "CREATE OR REPLACE FUNCTION minion_predecessor(t uuid, ns text, conversation text) RETURNS uuid "
        "LANGUAGE sql STABLE AS 'SELECT NULL::uuid'"
    )
    first, second = (submit(hand, witness, number, conversation_id="talk") for number in (1, 2))
    for task in (second, first):
        hand.again(task)
        succeed(hand, task)


def double_a_slot(hand: ByHand, witness: Witness) -> None:
    made = schedule(hand)
    first = hand.sql("SELECT next_at FROM schedules")
    tick(hand, made)
    hand.sql("DELETE FROM idempotency_keys")
    hand.sql("UPDATE schedules SET next_at = :first", first=first)
    tick(hand, made)


def miss_a_slot(hand: ByHand, witness: Witness) -> None:
    made = schedule(hand)
    tick(hand, made)
    hand.sql("UPDATE schedules SET next_at = next_at + interval '1 hour'")


def replay_with_other_keys(hand: ByHand, witness: Witness) -> None:
    original = run(hand, witness, 1)
    succeed(hand, original, "a key")
    again = hand.call(replay, original, pinned=True, submitted_by="test").task_id
    hand.again(again)
    succeed(hand, again, "another key")


def drop_a_webhook(hand: ByHand, witness: Witness) -> None:
    succeed(hand, run(hand, witness, 1))
    witness.listening = True


def sign_wrongly(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1)
    succeed(hand, task)
    witness.received.append(("message", str(task), "task.succeeded", False))


def prune_too_much(hand: ByHand, witness: Witness) -> None:
    succeed(hand, run(hand, witness, 1))
    list(prune(hand.engine, Settings(retention_succeeded=1e-9)))


def run_a_step_again(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1)
    for status in ("started", "finished", "started"):
        journal(hand, task, status)
    succeed(hand, task)


def pay_twice(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1)
    journal(hand, task, "started")
    witness.asked[1, 0] = 2
    succeed(hand, task)


def leave_an_execution_open(hand: ByHand, witness: Witness) -> None:
    task = run(hand, witness, 1)
    succeed(hand, task)
    hand.sql("UPDATE executions SET outcome = 'running', finished_at = NULL WHERE task_id = :task", task=task)


def skip_a_state(hand: ByHand, witness: Witness) -> None:
    hand.sql("DROP TRIGGER task_status_transition ON task_status")
    task = submit(hand, witness, 1)
    for state, reason in (("waiting", "subtask"), ("pending", None)):
        change = "UPDATE task_status SET state = :state, wait_reason = :reason WHERE task_id = :task"
        hand.sql(change, state=state, reason=reason, task=task)
    hand.again(task)
    succeed(hand, task)


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
        (repeat_an_unsafe_call, {"an unsafe call is made again only where a person said so"}),
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
def test_audit_notices_a_mistake(hand: ByHand, mistake: Mistake, seen: set[str]) -> None:
    witness = Witness(listening=False)
    mistake(hand, witness)
    assert broken(hand, witness) == seen
