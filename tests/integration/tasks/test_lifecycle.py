"""How a task changes: the fence, the waits, the ends. Each test takes the steps by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from shared.errors import InvalidInput, NotFound, UnknownAgent
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.lifecycle_driver import NOOP, ByHand, agent, at_once

MEGABYTE = "x" * (1 << 20)


@pytest.fixture
def hand(database: Engine, define: Define) -> ByHand:
    define(NOOP, agent("A"), agent("B"))
    return ByHand(database)


def step(number: int, **fields: object) -> dict[str, object]:
    return {"number": number, "kind": "tool_call", "name": "noop", "status": "finished", "request_hash": "h", **fields}


# -------------------------------------------------------------------------------------------------- the fence


def test_a_task_goes_all_the_way_through(hand: ByHand) -> None:
    task = hand.submit(input={"x": 1})
    assert hand.state(task) == "pending"
    [message] = hand.dispatch()
    assert (message.task_id, message.claim, message.queue, message.agent_name) == (task, 0, "work", "A")
    claimed = hand.claim(task, 0)
    assert claimed is not None
    assert (claimed["claim"], claimed["input"], claimed["steps"]) == (1, {"x": 1}, [])
    assert hand.finish(task, output={"y": 2}) == State.SUCCEEDED
    row = hand.row(task)
    assert (row["state"], row["output"], row["error"], row["worker_id"]) == ("succeeded", {"y": 2}, None, None)


def test_only_one_of_many_claims_gets_the_task(hand: ByHand) -> None:
    task = hand.submit()
    hand.dispatch()
    claims = at_once(*[lambda: hand.claim(task, 0)] * 8)
    assert [claimed["claim"] for claimed in claims if claimed] == [1]
    assert hand.sql("SELECT count(*) FROM executions") == 1


@pytest.mark.parametrize("claim", [0, 2, -1])
def test_a_wrong_claim_number_writes_nothing(hand: ByHand, claim: int) -> None:
    task = hand.run()
    assert hand.finish(task, claim, output=1) is None
    assert hand.release(task, claim) is None
    assert hand.call(lifecycle.write_steps, task, claim, [step(1)]) is None
    assert hand.call(lifecycle.suspend, task, claim, {}, []) is None
    assert hand.state(task) == "running"
    assert hand.sql("SELECT count(*) FROM steps") == 0


def test_the_claim_before_cannot_write_any_more(hand: ByHand) -> None:
    task = hand.run()
    hand.release(task, 1, how="lost", charged=False)
    assert hand.again(task) == 2
    assert hand.finish(task, 1, output="late") is None
    assert hand.call(lifecycle.write_steps, task, 1, [step(1)]) is None
    assert hand.finish(task, 2, output="in time") == State.SUCCEEDED
    assert hand.row(task)["output"] == "in time"


def test_a_task_finishes_once(hand: ByHand) -> None:
    task = hand.run()
    ends = at_once(*[lambda: hand.finish(task, output=1)] * 8)
    assert [end for end in ends if end] == [State.SUCCEEDED]
    assert hand.release(task) is None
    assert hand.call(lifecycle.cancel, task, reason="late") == State.SUCCEEDED
    assert hand.sql("SELECT count(*) FROM task_outcomes") == 1


def test_only_a_registered_worker_claims(hand: ByHand) -> None:
    task = hand.submit()
    hand.dispatch()
    assert hand.claim(task, worker=uuid4()) is None
    hand.sql("UPDATE workers SET status = 'lost'")
    assert hand.claim(task) is None
    assert hand.state(task) == "queued"


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.WAITING])
def test_a_task_finishes_in_a_final_state_only(hand: ByHand, state: State) -> None:
    task = hand.run()
    with pytest.raises(IntegrityError):
        hand.finish(task, state=state)
    assert hand.state(task) == "running"


def test_a_failure_has_an_error(hand: ByHand) -> None:
    task = hand.run()
    with pytest.raises(IntegrityError, match="failed_has_error"):
        hand.call(lifecycle.finish, task, 1, State.FAILED, {})


# ------------------------------------------------------------------------------------------ steps and outputs


def test_a_finished_step_is_never_overwritten(hand: ByHand) -> None:
    task = hand.run()
    assert hand.call(lifecycle.write_steps, task, 1, [step(1, status="started")]) == {"cancel": False}
    hand.call(lifecycle.write_steps, task, 1, [step(1, output="first"), step(2, status="failed", error={"e": 1})])
    hand.call(lifecycle.write_steps, task, 1, [step(1, output="second"), step(2, output="mended")])
    hand.release(task, charged=False)
    hand.dispatch()
    claimed = hand.claim(task)
    assert claimed is not None
    assert [(s["number"], s["output"]) for s in claimed["steps"]] == [(1, "first"), (2, "mended")]


@pytest.mark.parametrize("output", [None, False, 0, "", [], {}, {"deep": [1.5, "ü"]}])
def test_every_output_comes_back_as_it_was(hand: ByHand, output: object) -> None:
    task = hand.run()
    hand.finish(task, output=output)
    assert hand.row(task)["output"] == output


def test_large_outputs_are_stored_once(hand: ByHand) -> None:
    first, second = hand.run(), hand.run()
    at_once(lambda: hand.finish(first, output=MEGABYTE), lambda: hand.finish(second, output=MEGABYTE))
    assert hand.row(first)["output"] == hand.row(second)["output"] == MEGABYTE
    assert hand.sql("SELECT count(*) FROM contents") == 1
    assert hand.sql("SELECT count(output) FROM task_outcomes") == 0


def test_a_parent_reads_the_large_output_of_its_child(hand: ByHand) -> None:
    parent = hand.run()
    [child] = hand.suspend(parent, children=["B"])
    hand.again(child)
    hand.finish(child, output=MEGABYTE)
    hand.dispatch()
    claimed = hand.claim(parent)
    assert claimed is not None
    assert claimed["steps"][0]["outcome"] == {"state": "succeeded", "output": MEGABYTE, "error": None}


def fingerprint(hand: ByHand, message: str, kind: str = "test") -> str:
    task = hand.run()
    hand.finish(task, state=State.FAILED, error={"type": kind, "message": message})
    return str(hand.row(task)["error_fingerprint"])


def test_fingerprints_group_equal_errors(hand: ByHand) -> None:
    first = fingerprint(hand, "Order 17 of 'Ann' (6f1c2a9e-0000-7000-8000-000000000001) is late.")
    assert fingerprint(hand, "Order 4 of 'Bob' (6f1c2a9e-0000-7000-8000-000000000002) is late.") == first
    assert fingerprint(hand, "Order 17 of 'Ann' is lost.") != first
    assert fingerprint(hand, "Order 17 of 'Ann' (6f1c2a9e-0000-7000-8000-000000000001) is late.", "other") != first


def test_fingerprints_ignore_quoted_values_however_long(hand: ByHand) -> None:
    assert fingerprint(hand, f"{'x' * 490} '{'a' * 400}' is late.") == fingerprint(hand, f"{'x' * 490} 'b' is late.")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The classifier “BSD License” is ambiguous.", "The classifier “MIT” is ambiguous."),
        ("«oui» or ‘yes’ or „ja“ or `y`", "«non» or ‘no’ or „nein“ or `n`"),
        ("GET https://a.example/x?y=1 failed", "GET http://b.example:8080/z failed"),
        ("Cannot read /srv/data/a-1.csv.", "Cannot read /home/ann/b.csv."),
        (r"Cannot read C:\data\a.csv", r"Cannot read d:\b.csv"),
        ("No order ord_9f2c in 1.5 s.", "No order A-17 in 12 s."),
        ("It took 17:30:05.", "It took 2."),
        ("digest 3f2a9c", "digest b81d"),
    ],
)
def test_fingerprints_mask_what_differs_from_case_to_case(hand: ByHand, one: str, other: str) -> None:
    assert fingerprint(hand, one) == fingerprint(hand, other)


def test_fingerprints_keep_words_apart(hand: ByHand) -> None:
    found = {
        fingerprint(hand, message)
        for message in ("read and/or write", "read and write", "Cannot open it.", "It isn’t.")
    }
    assert len(found) == 4


# -------------------------------------------------------------------------------------------------- sub-tasks


def test_a_parent_wakes_once_when_many_children_finish_together(hand: ByHand) -> None:
    parent = hand.run()
    children = hand.suspend(parent, children=["B"] * 24)
    assert hand.row(parent)["open_waits"] == 24
    hand.dispatch()
    for child in children:
        hand.claim(child)
    ends = at_once(*[lambda child=child: hand.finish(child, output=str(child)) for child in children])
    assert ends == [State.SUCCEEDED] * 24
    row = hand.row(parent)
    assert (row["state"], row["open_waits"], row["wait_reason"], row["claim"]) == ("pending", 0, None, 1)
    assert [message.task_id for message in hand.dispatch()] == [parent]
    claimed = hand.claim(parent)
    assert claimed is not None
    assert [s["outcome"]["output"] for s in claimed["steps"]] == [str(child) for child in children]


def test_a_parent_waits_for_the_last_child(hand: ByHand) -> None:
    parent = hand.run()
    first, second = hand.suspend(parent, children=["B", "B"])
    hand.again(first)
    hand.finish(first, state=State.FAILED)
    assert hand.row(parent)["open_waits"] == 1
    assert hand.state(parent) == "waiting"
    hand.call(lifecycle.cancel, second, reason="enough")
    assert hand.state(parent) == "pending"


def test_a_suspension_without_anything_to_wait_for_is_pending_at_once(hand: ByHand) -> None:
    parent = hand.run()
    hand.suspend(parent)
    assert hand.state(parent) == "pending"


def test_children_inherit_from_their_parent(hand: ByHand) -> None:
    deadline = datetime.now(UTC) + timedelta(hours=1)
    parent = hand.run(key="tenant", labels={"a": "b"}, priority=7, deadline=deadline, conversation_id="c")
    [child] = hand.suspend(parent, children=["B"])
    row = hand.row(child)
    assert (row["key"], row["labels"], row["priority"], row["deadline"]) == ("tenant", {"a": "b"}, 7, deadline)
    assert (row["parent_id"], row["root_id"], row["depth"], row["conversation_id"]) == (parent, parent, 1, None)


def test_all_children_are_made_or_none(hand: ByHand) -> None:
    parent = hand.run()
    with pytest.raises(UnknownAgent):
        hand.suspend(parent, children=["B", "Nobody"])
    assert hand.state(parent) == "running"
    assert hand.sql("SELECT count(*) FROM tasks") == 1


def test_a_chain_is_no_deeper_than_every_ancestor_allows(hand: ByHand, define: Define) -> None:
    define(agent("Root", config={"max_chain_depth": 2}))
    [first] = hand.suspend(hand.run("Root"), children=["B"])
    [second] = hand.suspend(first, hand.again(first), children=["B"])
    hand.again(second)
    with pytest.raises(InvalidInput, match="deeper than its max_chain_depth of 2"):
        hand.suspend(second, children=["B"])


# ------------------------------------------------------------------------------- attempts, losses, back-off


def test_attempts_are_charged_and_used_up(hand: ByHand) -> None:
    task = hand.run()
    error = {"type": "test", "message": "no"}
    assert hand.release(task, 1, result={"error": error}) == State.PENDING
    assert hand.release(task, hand.again(task), result={"error": error}) == State.PENDING
    assert hand.release(task, hand.again(task), result={"error": error}) == State.FAILED
    row = hand.row(task)
    assert (row["attempts"], row["claim"]) == (3, 3)
    assert row["error"] == {**error, "attempts": 3, "losses": 0, "max_attempts": 3}


def test_a_hand_back_is_not_charged(hand: ByHand) -> None:
    task = hand.run()
    for claim in range(1, 12):
        assert hand.release(task, claim, how="handed_back", charged=False) == State.PENDING
        hand.again(task)
    assert (hand.row(task)["attempts"], hand.row(task)["losses"]) == (0, 0)


def test_a_task_that_keeps_losing_its_worker_is_stopped(hand: ByHand, define: Define) -> None:
    define(agent("Once", config={"max_attempts": 1}))
    task = hand.run("Once")
    assert hand.release(task, 1, how="lost", charged=False) == State.PENDING
    assert hand.release(task, hand.again(task), how="lost", charged=False) == State.PENDING
    assert hand.release(task, hand.again(task), how="lost", charged=False) == State.FAILED
    assert (hand.row(task)["attempts"], hand.row(task)["losses"]) == (0, 3)


def test_back_off_waits_without_a_worker(hand: ByHand) -> None:
    task = hand.run()
    assert hand.release(task, delay=3600.0) == State.WAITING
    row = hand.row(task)
    assert (row["wait_reason"], row["worker_id"]) == ("backoff", None)
    assert hand.call(lifecycle.wake_due) == 0
    hand.sql("UPDATE task_status SET due_at = now()")
    assert hand.call(lifecycle.wake_due) == 1
    assert hand.again(task) == 2


def test_two_wakers_wake_a_task_once(hand: ByHand) -> None:
    task = hand.run()
    hand.release(task, delay=3600.0)
    hand.sql("UPDATE task_status SET due_at = now()")
    woken = at_once(*[lambda: hand.call(lifecycle.wake_due)] * 4)
    assert sum(woken) == 1


def test_two_dispatchers_send_a_task_once(hand: ByHand) -> None:
    tasks = {hand.submit() for _ in range(20)}
    rounds = at_once(*[lambda: hand.call(lifecycle.dispatch, lease=10.0, window=1000)] * 4)
    assert sorted(message.task_id for messages in rounds for message in messages) == sorted(tasks)


def test_the_urgent_and_the_older_go_first(hand: ByHand) -> None:
    late, early, urgent = hand.submit(priority=-5), hand.submit(priority=0), hand.submit(priority=9)
    assert [message.task_id for message in hand.dispatch()] == [urgent, early, late]


def test_nothing_is_sent_where_nobody_serves(hand: ByHand, define: Define) -> None:
    define(agent("Lonely", "unserved"))
    task = hand.submit("Lonely")
    assert hand.dispatch() == []
    hand.sql("UPDATE workers SET last_seen = now() - interval '1 hour'")
    hand.submit("A")
    assert hand.dispatch() == []
    assert hand.state(task) == "pending"


# ------------------------------------------------------------------------------------------ cancel and expire


@pytest.mark.parametrize("state", ["scheduled", "pending", "queued", "waiting"])
def test_what_does_not_run_is_cancelled_at_once(hand: ByHand, state: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    task = hand.submit(run_at=later if state == "scheduled" else None)
    if state in ("queued", "waiting"):
        hand.dispatch()
    if state == "waiting":
        hand.claim(task)
        hand.release(task, delay=60)
    assert hand.state(task) == state
    assert hand.call(lifecycle.cancel, task, reason="enough") == State.CANCELLED
    assert hand.row(task)["error"] == {"type": "cancelled", "message": "enough"}
    assert hand.claim(task) is None


@pytest.mark.parametrize("end", ["finish", "fail", "retry", "hand back", "suspend"])
def test_a_running_task_is_asked_to_stop_and_then_ends_as_cancelled(hand: ByHand, end: str) -> None:
    task = hand.run()
    assert hand.call(lifecycle.cancel, task, reason="enough") == State.RUNNING
    assert hand.call(lifecycle.write_steps, task, 1, []) == {"cancel": True}
    child = {"step": 1, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
    ended = {
        "finish": lambda: hand.finish(task, output="too late"),
        "fail": lambda: hand.finish(task, state=State.FAILED),
        "retry": lambda: hand.release(task, delay=5),
        "hand back": lambda: hand.release(task, how="handed_back", charged=False),
        "suspend": lambda: hand.call(lifecycle.suspend, task, 1, {}, [child]),
    }[end]()
    assert ended == State.CANCELLED
    assert hand.row(task)["output"] is None
    assert hand.sql("SELECT outcome FROM executions") == "cancelled"
    assert hand.sql("SELECT count(*) FROM tasks") == 1


def test_a_cancel_reaches_the_whole_tree(hand: ByHand) -> None:
    root = hand.run()
    running, waiting, pending = hand.suspend(root, children=["B"] * 3)
    hand.again(running)
    hand.claim(waiting)
    [leaf] = hand.suspend(waiting, children=["B"])
    done = leaf
    hand.again(done)
    hand.finish(done)
    assert hand.call(lifecycle.cancel, root, reason="enough") == State.CANCELLED
    assert [hand.state(task) for task in (root, running, waiting, pending, done)] == [
        "cancelled",
        "running",
        "cancelled",
        "cancelled",
        "succeeded",
    ]
    assert hand.finish(running) == State.CANCELLED


def test_a_cancel_that_meets_a_suspension_reaches_the_new_children(hand: ByHand) -> None:
    """The canceller waits for the row that the suspension holds, and sees the children only afterwards."""
    root = hand.run()
    child = {"step": 1, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
    with hand.engine.connect() as suspending:
        lifecycle.suspend(suspending, root, 1, {}, [child])

        def cancel() -> State:
            return hand.call(lifecycle.cancel, root, reason="enough")

        def commit_when_it_waits() -> None:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%end_tree%'"
            while not hand.sql(blocked):
                pass
            suspending.commit()

        assert at_once(cancel, commit_when_it_waits)[0] == State.CANCELLED
    assert hand.sql("SELECT count(*) FROM task_status WHERE state <> 'cancelled'") == 0


def test_a_child_that_is_cancelled_tells_its_parent(hand: ByHand) -> None:
    parent = hand.run()
    [child] = hand.suspend(parent, children=["B"])
    hand.call(lifecycle.cancel, child, reason="not needed")
    hand.dispatch()
    claimed = hand.claim(parent)
    assert claimed is not None
    assert claimed["steps"][0]["outcome"]["state"] == "cancelled"
    assert claimed["steps"][0]["status"] == "failed"


def test_cancelling_and_finishing_a_tree_at_once_never_deadlocks(hand: ByHand) -> None:
    for _ in range(5):
        root = hand.run()
        children = hand.suspend(root, children=["B"] * 6)
        hand.dispatch()
        for child in children:
            hand.claim(child)
        at_once(
            lambda root=root: hand.call(lifecycle.cancel, root, reason="enough"),
            *[lambda child=child: hand.finish(child) for child in children],
            *[lambda child=child: hand.call(lifecycle.cancel, child, reason="enough") for child in children],
        )
        assert {hand.state(child) for child in children} <= {"succeeded", "cancelled"}
        assert hand.row(root)["open_waits"] == 0


def expire_soon(hand: ByHand, task: UUID) -> None:
    """Moves a running task's deadline into the past, as a pause of the orchestrator's would."""
    hand.sql("UPDATE task_status SET deadline = now() - interval '1 second' WHERE task_id = :task", task=task)


def test_finishing_after_the_deadline_expires(hand: ByHand) -> None:
    task = hand.run()
    expire_soon(hand, task)
    assert hand.finish(task, output=1, cost_microdollars=5, steps=[]) == State.EXPIRED
    row = hand.row(task)
    assert (row["state"], row["output"], row["error"]["type"]) == ("expired", None, "expired")
    assert hand.sql("SELECT outcome || ' ' || cost_microdollars FROM executions") == "expired 5"


def test_failing_after_the_deadline_expires_with_the_failure_as_cause(hand: ByHand) -> None:
    task = hand.run()
    expire_soon(hand, task)
    assert hand.finish(task, state=State.FAILED) == State.EXPIRED
    assert hand.row(task)["error"]["cause"] == {"type": "test", "message": "It failed."}


def test_a_cancel_wins_over_a_passed_deadline(hand: ByHand) -> None:
    task = hand.run()
    hand.call(lifecycle.cancel, task, reason="test")
    expire_soon(hand, task)
    assert hand.finish(task) == State.CANCELLED


def test_a_passed_deadline_refuses_the_claim_and_expires(hand: ByHand) -> None:
    task = hand.submit(deadline=datetime.now(UTC) - timedelta(seconds=1))
    hand.dispatch()
    assert hand.claim(task) is None
    assert hand.call(lifecycle.expire, task) == State.EXPIRED
    assert hand.row(task)["error"]["type"] == "expired"


def test_expiry_takes_a_running_task_from_its_minion(hand: ByHand) -> None:
    task = hand.run(deadline=datetime.now(UTC) + timedelta(hours=1))
    assert hand.call(lifecycle.expire, task) == State.EXPIRED
    assert hand.finish(task, output="late") is None
    assert hand.sql("SELECT outcome FROM executions") == "expired"


def test_expiry_cancels_what_is_below(hand: ByHand) -> None:
    parent = hand.run()
    [child] = hand.suspend(parent, children=["B"])
    assert hand.call(lifecycle.expire, parent) == State.EXPIRED
    assert hand.state(child) == "cancelled"


def test_there_is_nothing_to_cancel_where_there_is_no_task(hand: ByHand) -> None:
    with pytest.raises(NotFound, match="There is no task"):
        hand.call(lifecycle.cancel, uuid4(), reason="x")


# ------------------------------------------------------------------------------------------- lost messages


def test_a_lost_message_is_published_again_under_the_same_claim(hand: ByHand) -> None:
    task = hand.submit()
    hand.dispatch()
    hand.sql("UPDATE task_status SET published_at = now() - interval '1 min'")
    hand.sql("UPDATE workers SET idle_since = now() - interval '1 min'")
    options = {"lease": 10.0, "patience": 5.0, "empty_queues": ["work"]}
    assert [(m.task_id, m.claim) for m in hand.call(lifecycle.republish, **options)] == [(task, 0)]
    assert hand.call(lifecycle.republish, **options) == []
    assert hand.claim(task, 0) is not None
    assert hand.claim(task, 0) is None


@pytest.mark.parametrize(
    "given",
    [
        "UPDATE workers SET idle_since = NULL",
        "UPDATE workers SET last_seen = now() - interval '1 hour'",
        "UPDATE workers SET capabilities = '{other}'",
        "UPDATE task_status SET published_at = now()",
    ],
)
def test_a_message_is_not_lost_while_nobody_could_have_taken_it(hand: ByHand, given: str) -> None:
    hand.submit()
    hand.dispatch()
    hand.sql("UPDATE task_status SET published_at = now() - interval '1 min'")
    hand.sql("UPDATE workers SET idle_since = now() - interval '1 min'")
    hand.sql(given)
    assert hand.call(lifecycle.republish, lease=10.0, patience=5.0, empty_queues=["work"]) == []


# ------------------------------------------------------------------------------------------- conversations


def dispatched(hand: ByHand) -> list[UUID]:
    return [message.task_id for message in hand.dispatch()]


def test_the_tasks_of_a_conversation_take_turns(hand: ByHand) -> None:
    first, second, third = (hand.submit(conversation_id="c", priority=p) for p in (0, 50, 100))
    other = hand.submit(conversation_id="d")
    assert set(dispatched(hand)) == {first, other}
    assert dispatched(hand) == []
    hand.claim(first)
    hand.finish(first)
    assert dispatched(hand) == [second]
    hand.call(lifecycle.cancel, second, reason="enough")
    assert dispatched(hand) == [third]


def test_a_task_that_waits_keeps_its_turn(hand: ByHand) -> None:
    first = hand.run(conversation_id="c")
    second = hand.submit(conversation_id="c")
    [child] = hand.suspend(first, children=["B"])
    assert dispatched(hand) == [child]
    hand.claim(child)
    hand.finish(child)
    assert dispatched(hand) == [first]
    hand.claim(first)
    hand.finish(first, 2)
    assert dispatched(hand) == [second]


def test_a_turn_that_was_missed_is_found(hand: ByHand) -> None:
    first, second = hand.submit(conversation_id="c"), hand.submit(conversation_id="c")
    assert dispatched(hand) == [first]
    hand.claim(first)
    hand.finish(first)
    hand.sql("UPDATE task_status SET rank = minion_parked() WHERE task_id = :t", t=second)
    assert dispatched(hand) == []
    assert hand.call(lifecycle.heal_turns) == 1
    assert dispatched(hand) == [second]


def test_a_scheduled_task_is_in_nobodys_way(hand: ByHand) -> None:
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    hand.submit(conversation_id="c", run_at=later)
    now = hand.submit(conversation_id="c")
    assert dispatched(hand) == [now]


def test_a_scheduled_task_that_is_due_does_not_break_in(hand: ByHand) -> None:
    early = hand.submit(conversation_id="c", run_at=datetime.now(UTC) + timedelta(hours=1))
    begun = hand.run(conversation_id="c")
    hand.sql("UPDATE task_status SET due_at = now() WHERE state = 'scheduled'")
    assert hand.call(lifecycle.wake_due) == 1
    assert dispatched(hand) == []
    hand.release(begun, charged=False)
    assert dispatched(hand) == [begun]
    hand.claim(begun)
    hand.finish(begun, 2)
    assert dispatched(hand) == [early]


def test_a_task_that_is_committed_late_waits_for_the_one_that_has_begun(hand: ByHand) -> None:
    with hand.engine.connect() as slow:
        request = {"agent": "A", "input": {}, "conversation_id": "c"}
        late = lifecycle.accept(slow, [request])[0].task_id
        begun = hand.run(conversation_id="c")
        slow.commit()
    assert dispatched(hand) == [late], "nobody saw it when it was accepted"
    claimed = hand.claim(late)
    assert claimed is not None
    assert claimed["refused"] == {"kind": "turn", "task": str(begun)}
    assert dispatched(hand) == []
    hand.finish(begun)
    assert dispatched(hand) == [late]
    assert hand.claim(late) is not None
    assert hand.state(late) == "running"


def test_two_tasks_of_a_conversation_never_run_at_once(hand: ByHand) -> None:
    with hand.engine.connect() as slow:
        request = {"agent": "A", "input": {}, "conversation_id": "c"}
        late = lifecycle.accept(slow, [request])[0].task_id
        other = hand.submit(conversation_id="c")
        assert dispatched(hand) == [other]
        slow.commit()
    assert dispatched(hand) == [late]
    claims = at_once(lambda: hand.claim(other), lambda: hand.claim(late))
    assert sorted("refused" in claim for claim in claims if claim) == [False, True]
    assert sorted([hand.state(other), hand.state(late)]) == ["pending", "running"]


# -------------------------------------------------------------------------------------- overtaken messages


def test_a_message_that_was_overtaken_is_sent_again_while_the_queue_is_full(hand: ByHand) -> None:
    lost, later = hand.submit(), hand.submit()
    hand.dispatch()

    def republished() -> list[UUID]:
        again = hand.call(lifecycle.republish, lease=10.0, patience=5.0, empty_queues=[])
        return [message.task_id for message in again]

    hand.sql("UPDATE task_status SET published_at = now() - interval '8 s' WHERE task_id = :t", t=lost)
    assert republished() == []
    hand.claim(later)
    assert republished() == [lost]
    assert republished() == [], "not before twice the patience"


def test_a_sub_task_stands_where_its_parent_stood(hand: ByHand) -> None:
    parent = hand.run()
    hand.submit(priority=0)
    [child] = hand.suspend(parent, children=["B"])
    hand.sql("UPDATE workers SET slots = 1")
    [first, *_] = dispatched(hand)
    assert first == child
