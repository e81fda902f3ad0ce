"""The life of a task: the fence, the waits, the ends. Tests use the lifecycle driver."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from shared.errors import InvalidInput, NotFound, UnknownAgent
from shared.tasks import lifecycle
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.definitions import agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

MEGABYTE = "x" * (1 << 20)


def step(number: int, **fields: object) -> dict[str, object]:
    return {"number": number, "kind": "tool_call", "name": "noop", "status": "finished", "request_hash": "h", **fields}


# -------------------------------------------------------------------------------------------------- the fence


def test_a_task_goes_all_the_way_through(driver: LifecycleDriver) -> None:
    task = driver.submit(input={"x": 1})
    assert driver.state(task) == "pending"
    [message] = driver.dispatch()
    assert (message.task_id, message.claim, message.queue, message.agent_name) == (task, 0, "work", "A")
    claimed = driver.claim(task, 0)
    assert claimed is not None
    assert (claimed["claim"], claimed["input"], claimed["steps"]) == (1, {"x": 1}, [])
    assert driver.finish(task, output={"y": 2}) == State.SUCCEEDED
    row = driver.row(task)
    assert (row["state"], row["output"], row["error"], row["worker_id"]) == ("succeeded", {"y": 2}, None, None)


def test_only_one_of_many_claims_gets_the_task(driver: LifecycleDriver) -> None:
    task = driver.submit()
    driver.dispatch()
    claims = concurrently(*[lambda: driver.claim(task, 0)] * 8)
    assert [claimed["claim"] for claimed in claims if claimed] == [1]
    assert driver.sql("SELECT count(*) FROM executions") == 1


@pytest.mark.parametrize("claim", [0, 2, -1])
def test_wrong_claim_number_writes_nothing(driver: LifecycleDriver, claim: int) -> None:
    task = driver.run()
    assert driver.finish(task, claim, output=1) is None
    assert driver.release(task, claim) is None
    assert driver.call(lifecycle.write_steps, task, claim, [step(1)]) is None
    assert driver.call(lifecycle.suspend, task, claim, {}, []) is None
    assert driver.state(task) == "running"
    assert driver.sql("SELECT count(*) FROM steps") == 0


def test_the_claim_before_cannot_write_any_more(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.release(task, 1, how="lost", charged=False)
    assert driver.again(task) == 2
    assert driver.finish(task, 1, output="late") is None
    assert driver.call(lifecycle.write_steps, task, 1, [step(1)]) is None
    assert driver.finish(task, 2, output="in time") == State.SUCCEEDED
    assert driver.row(task)["output"] == "in time"


def test_a_task_finishes_once(driver: LifecycleDriver) -> None:
    task = driver.run()
    ends = concurrently(*[lambda: driver.finish(task, output=1)] * 8)
    assert [end for end in ends if end] == [State.SUCCEEDED]
    assert driver.release(task) is None
    assert driver.call(lifecycle.cancel, task, reason="late") == State.SUCCEEDED
    assert driver.sql("SELECT count(*) FROM task_outcomes") == 1


def test_only_a_registered_worker_claims(driver: LifecycleDriver) -> None:
    task = driver.submit()
    driver.dispatch()
    assert driver.claim(task, worker=uuid4()) is None
    driver.sql("UPDATE workers SET status = 'lost'")
    assert driver.claim(task) is None
    assert driver.state(task) == "queued"


@pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.WAITING])
def test_a_task_finishes_in_a_final_state_only(driver: LifecycleDriver, state: State) -> None:
    task = driver.run()
    with pytest.raises(IntegrityError):
        driver.finish(task, state=state)
    assert driver.state(task) == "running"


def test_a_failure_has_an_error(driver: LifecycleDriver) -> None:
    task = driver.run()
    with pytest.raises(IntegrityError, match="failed_has_error"):
        driver.call(lifecycle.finish, task, 1, State.FAILED, {})


# ------------------------------------------------------------------------------------------ steps and outputs


def test_a_finished_step_is_never_overwritten(driver: LifecycleDriver) -> None:
    task = driver.run()
    assert driver.call(lifecycle.write_steps, task, 1, [step(1, status="started")]) == {"cancel": False}
    driver.call(lifecycle.write_steps, task, 1, [step(1, output="first"), step(2, status="failed", error={"e": 1})])
    driver.call(lifecycle.write_steps, task, 1, [step(1, output="second"), step(2, output="mended")])
    driver.release(task, charged=False)
    driver.dispatch()
    claimed = driver.claim(task)
    assert claimed is not None
    assert [(s["number"], s["output"]) for s in claimed["steps"]] == [(1, "first"), (2, "mended")]


@pytest.mark.parametrize("output", [None, False, 0, "", [], {}, {"deep": [1.5, "ü"]}])
def test_every_output_is_returned_unchanged(driver: LifecycleDriver, output: object) -> None:
    task = driver.run()
    driver.finish(task, output=output)
    assert driver.row(task)["output"] == output


def test_large_outputs_are_stored_once(driver: LifecycleDriver) -> None:
    first, second = driver.run(), driver.run()
    concurrently(lambda: driver.finish(first, output=MEGABYTE), lambda: driver.finish(second, output=MEGABYTE))
    assert driver.row(first)["output"] == driver.row(second)["output"] == MEGABYTE
    assert driver.sql("SELECT count(*) FROM contents") == 1
    assert driver.sql("SELECT count(output) FROM task_outcomes") == 0


def test_a_parent_reads_the_large_output_of_its_child(driver: LifecycleDriver) -> None:
    parent = driver.run()
    [child] = driver.suspend(parent, children=["B"])
    driver.again(child)
    driver.finish(child, output=MEGABYTE)
    driver.dispatch()
    claimed = driver.claim(parent)
    assert claimed is not None
    assert claimed["steps"][0]["outcome"] == {"state": "succeeded", "output": MEGABYTE, "error": None}


def fingerprint(driver: LifecycleDriver, message: str, kind: str = "test") -> str:
    task = driver.run()
    driver.finish(task, state=State.FAILED, error={"type": kind, "message": message})
    return str(driver.row(task)["error_fingerprint"])


def test_fingerprints_group_equal_errors(driver: LifecycleDriver) -> None:
    first = fingerprint(driver, "Order 17 of 'Ann' (6f1c2a9e-0000-7000-8000-000000000001) is late.")
    assert fingerprint(driver, "Order 4 of 'Bob' (6f1c2a9e-0000-7000-8000-000000000002) is late.") == first
    assert fingerprint(driver, "Order 17 of 'Ann' is lost.") != first
    assert fingerprint(driver, "Order 17 of 'Ann' (6f1c2a9e-0000-7000-8000-000000000001) is late.", "other") != first


def test_fingerprints_ignore_quoted_values_however_long(driver: LifecycleDriver) -> None:
    assert fingerprint(driver, f"{'x' * 490} '{'a' * 400}' is late.") == fingerprint(
        driver, f"{'x' * 490} 'b' is late."
    )


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
        ("It doesn't know 'Ann'.", "It doesn't know 'Bob'."),
        ("Ann’s ‚eins‘ isn't b'one'", "Ann’s ‚zwei‘ isn't b'two'"),
        ("”ett” or »to« or ‹trois›", "”två” or »en« or ‹deux›"),
        ("No mailbox ann@example.com.", "No mailbox bob+x@example.org."),
        ("Cannot read data/in/ann.csv.", "Cannot read other/bob.json."),
        (r"Cannot read \\host\share\ann", r"Cannot read \\other\bob.csv"),
    ],
)
def test_fingerprints_mask_variable_parts(driver: LifecycleDriver, one: str, other: str) -> None:
    assert fingerprint(driver, one) == fingerprint(driver, other)


def test_fingerprints_keep_words_apart(driver: LifecycleDriver) -> None:
    found = {
        fingerprint(driver, message)
        for message in (
            "read and/or write",
            "read and write",
            "Cannot open it.",
            "It isn’t.",
            "It doesn't open, and can't",
            "It doesn't close, and can't",
        )
    }
    assert len(found) == 6


# -------------------------------------------------------------------------------------------------- sub-tasks


def test_a_parent_wakes_once_when_many_children_finish_together(driver: LifecycleDriver) -> None:
    parent = driver.run()
    children = driver.suspend(parent, children=["B"] * 24)
    assert driver.row(parent)["open_waits"] == 24
    driver.dispatch()
    for child in children:
        driver.claim(child)
    ends = concurrently(*[lambda child=child: driver.finish(child, output=str(child)) for child in children])
    assert ends == [State.SUCCEEDED] * 24
    row = driver.row(parent)
    assert (row["state"], row["open_waits"], row["wait_reason"], row["claim"]) == ("pending", 0, None, 1)
    assert [message.task_id for message in driver.dispatch()] == [parent]
    claimed = driver.claim(parent)
    assert claimed is not None
    assert [s["outcome"]["output"] for s in claimed["steps"]] == [str(child) for child in children]


def test_a_parent_waits_for_the_last_child(driver: LifecycleDriver) -> None:
    parent = driver.run()
    first, second = driver.suspend(parent, children=["B", "B"])
    driver.again(first)
    driver.finish(first, state=State.FAILED)
    assert driver.row(parent)["open_waits"] == 1
    assert driver.state(parent) == "waiting"
    driver.call(lifecycle.cancel, second, reason="enough")
    assert driver.state(parent) == "pending"


def test_suspension_without_waits_is_pending(driver: LifecycleDriver) -> None:
    parent = driver.run()
    driver.suspend(parent)
    assert driver.state(parent) == "pending"


def test_children_inherit_from_their_parent(driver: LifecycleDriver) -> None:
    deadline = datetime.now(UTC) + timedelta(hours=1)
    parent = driver.run(key="tenant", labels={"a": "b"}, priority=7, deadline=deadline, conversation_id="c")
    [child] = driver.suspend(parent, children=["B"])
    row = driver.row(child)
    assert (row["key"], row["labels"], row["priority"], row["deadline"]) == ("tenant", {"a": "b"}, 7, deadline)
    assert (row["parent_id"], row["root_id"], row["depth"], row["conversation_id"]) == (parent, parent, 1, None)


def test_all_children_are_made_or_none(driver: LifecycleDriver) -> None:
    parent = driver.run()
    with pytest.raises(UnknownAgent):
        driver.suspend(parent, children=["B", "Nobody"])
    assert driver.state(parent) == "running"
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_a_chain_is_no_deeper_than_every_ancestor_allows(driver: LifecycleDriver, define: Define) -> None:
    define(agent_definition("Root", config={"max_chain_depth": 2}))
    [first] = driver.suspend(driver.run("Root"), children=["B"])
    [second] = driver.suspend(first, driver.again(first), children=["B"])
    driver.again(second)
    with pytest.raises(InvalidInput, match="deeper than its max_chain_depth of 2"):
        driver.suspend(second, children=["B"])


# ------------------------------------------------------------------------------- attempts, losses, back-off


def test_attempts_are_charged_and_used_up(driver: LifecycleDriver) -> None:
    task = driver.run()
    error = {"type": "test", "message": "no"}
    assert driver.release(task, 1, result={"error": error}) == State.PENDING
    assert driver.release(task, driver.again(task), result={"error": error}) == State.PENDING
    assert driver.release(task, driver.again(task), result={"error": error}) == State.FAILED
    row = driver.row(task)
    assert (row["attempts"], row["claim"]) == (3, 3)
    assert row["error"] == {**error, "attempts": 3, "losses": 0, "max_attempts": 3}


def test_a_hand_back_is_not_charged(driver: LifecycleDriver) -> None:
    task = driver.run()
    for claim in range(1, 12):
        assert driver.release(task, claim, how="handed_back", charged=False) == State.PENDING
        driver.again(task)
    assert (driver.row(task)["attempts"], driver.row(task)["losses"]) == (0, 0)


def test_a_task_that_keeps_losing_its_worker_is_stopped(driver: LifecycleDriver, define: Define) -> None:
    define(agent_definition("Once", config={"max_attempts": 1}))
    task = driver.run("Once")
    assert driver.release(task, 1, how="lost", charged=False) == State.PENDING
    assert driver.release(task, driver.again(task), how="lost", charged=False) == State.PENDING
    assert driver.release(task, driver.again(task), how="lost", charged=False) == State.FAILED
    assert (driver.row(task)["attempts"], driver.row(task)["losses"]) == (0, 3)


def test_back_off_waits_without_a_worker(driver: LifecycleDriver) -> None:
    task = driver.run()
    assert driver.release(task, delay=3600.0) == State.WAITING
    row = driver.row(task)
    assert (row["wait_reason"], row["worker_id"]) == ("backoff", None)
    assert driver.call(lifecycle.wake_due) == 0
    driver.sql("UPDATE task_status SET due_at = now()")
    assert driver.call(lifecycle.wake_due) == 1
    assert driver.again(task) == 2


def test_two_wakers_wake_a_task_once(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.release(task, delay=3600.0)
    driver.sql("UPDATE task_status SET due_at = now()")
    woken = concurrently(*[lambda: driver.call(lifecycle.wake_due)] * 4)
    assert sum(woken) == 1


def test_two_dispatchers_send_a_task_once(driver: LifecycleDriver) -> None:
    tasks = {driver.submit() for _ in range(20)}
    rounds = concurrently(*[lambda: driver.call(lifecycle.dispatch, lease=10.0, window=1000)] * 4)
    assert sorted(message.task_id for messages in rounds for message in messages) == sorted(tasks)


def test_the_urgent_and_the_older_go_first(driver: LifecycleDriver) -> None:
    late, early, urgent = driver.submit(priority=-5), driver.submit(priority=0), driver.submit(priority=9)
    assert [message.task_id for message in driver.dispatch()] == [urgent, early, late]


def test_no_message_is_sent_to_an_unserved_capability(driver: LifecycleDriver, define: Define) -> None:
    define(agent_definition("Lonely", "unserved"))
    task = driver.submit("Lonely")
    assert driver.dispatch() == []
    driver.sql("UPDATE workers SET last_seen = now() - interval '1 hour'")
    driver.submit("A")
    assert driver.dispatch() == []
    assert driver.state(task) == "pending"


# ------------------------------------------------------------------------------------------ cancel and expire


@pytest.mark.parametrize("state", ["scheduled", "pending", "queued", "waiting"])
def test_task_that_is_not_running_is_cancelled_immediately(driver: LifecycleDriver, state: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    task = driver.submit(run_at=later if state == "scheduled" else None)
    if state in ("queued", "waiting"):
        driver.dispatch()
    if state == "waiting":
        driver.claim(task)
        driver.release(task, delay=60)
    assert driver.state(task) == state
    assert driver.call(lifecycle.cancel, task, reason="enough") == State.CANCELLED
    assert driver.row(task)["error"] == {"type": "cancelled", "message": "enough"}
    assert driver.claim(task) is None


@pytest.mark.parametrize("end", ["finish", "fail", "retry", "hand back", "suspend"])
def test_running_task_is_cancelled_cooperatively(driver: LifecycleDriver, end: str) -> None:
    task = driver.run()
    assert driver.call(lifecycle.cancel, task, reason="enough") == State.RUNNING
    assert driver.call(lifecycle.write_steps, task, 1, []) == {"cancel": True}
    child = {"step": 1, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
    ended = {
        "finish": lambda: driver.finish(task, output="too late"),
        "fail": lambda: driver.finish(task, state=State.FAILED),
        "retry": lambda: driver.release(task, delay=5),
        "hand back": lambda: driver.release(task, how="handed_back", charged=False),
        "suspend": lambda: driver.call(lifecycle.suspend, task, 1, {}, [child]),
    }[end]()
    assert ended == State.CANCELLED
    assert driver.row(task)["output"] is None
    assert driver.sql("SELECT outcome FROM executions") == "cancelled"
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_a_cancel_reaches_the_whole_tree(driver: LifecycleDriver) -> None:
    root = driver.run()
    running, waiting, pending = driver.suspend(root, children=["B"] * 3)
    driver.again(running)
    driver.claim(waiting)
    [leaf] = driver.suspend(waiting, children=["B"])
    done = leaf
    driver.again(done)
    driver.finish(done)
    assert driver.call(lifecycle.cancel, root, reason="enough") == State.CANCELLED
    assert [driver.state(task) for task in (root, running, waiting, pending, done)] == [
        "cancelled",
        "running",
        "cancelled",
        "cancelled",
        "succeeded",
    ]
    assert driver.finish(running) == State.CANCELLED


def test_cancel_during_suspension_reaches_new_children(driver: LifecycleDriver) -> None:
    """The canceller waits for the row that the suspension holds, and sees the children only afterwards."""
    root = driver.run()
    child = {"step": 1, "name": "B", "request_hash": "h", "request": {"agent": "B", "input": {}}}
    with driver.engine.connect() as suspending:
        lifecycle.suspend(suspending, root, 1, {}, [child])

        def cancel() -> State:
            return driver.call(lifecycle.cancel, root, reason="enough")

        def commit_when_it_waits() -> None:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%end_tree%'"
            while not driver.sql(blocked):
                pass
            suspending.commit()

        assert concurrently(cancel, commit_when_it_waits)[0] == State.CANCELLED
    assert driver.sql("SELECT count(*) FROM task_status WHERE state <> 'cancelled'") == 0


def test_cancelled_child_wakes_its_parent(driver: LifecycleDriver) -> None:
    parent = driver.run()
    [child] = driver.suspend(parent, children=["B"])
    driver.call(lifecycle.cancel, child, reason="not needed")
    driver.dispatch()
    claimed = driver.claim(parent)
    assert claimed is not None
    assert claimed["steps"][0]["outcome"]["state"] == "cancelled"
    assert claimed["steps"][0]["status"] == "failed"


def test_cancelling_and_finishing_a_tree_never_deadlocks(driver: LifecycleDriver) -> None:
    for _ in range(5):
        root = driver.run()
        children = driver.suspend(root, children=["B"] * 6)
        driver.dispatch()
        for child in children:
            driver.claim(child)
        concurrently(
            lambda root=root: driver.call(lifecycle.cancel, root, reason="enough"),
            *[lambda child=child: driver.finish(child) for child in children],
            *[lambda child=child: driver.call(lifecycle.cancel, child, reason="enough") for child in children],
        )
        assert {driver.state(child) for child in children} <= {"succeeded", "cancelled"}
        assert driver.row(root)["open_waits"] == 0


def expire_soon(driver: LifecycleDriver, task: UUID) -> None:
    """Moves a running task's deadline into the past, as a pause of the orchestrator's would."""
    driver.sql("UPDATE task_status SET deadline = now() - interval '1 second' WHERE task_id = :task", task=task)


def test_finishing_after_the_deadline_expires(driver: LifecycleDriver) -> None:
    task = driver.run()
    expire_soon(driver, task)
    assert driver.finish(task, output=1, cost_microdollars=5, steps=[]) == State.EXPIRED
    row = driver.row(task)
    assert (row["state"], row["output"], row["error"]["type"]) == ("expired", None, "expired")
    assert driver.sql("SELECT outcome || ' ' || cost_microdollars FROM executions") == "expired 5"


def test_failure_after_deadline_expires_with_cause(driver: LifecycleDriver) -> None:
    task = driver.run()
    expire_soon(driver, task)
    assert driver.finish(task, state=State.FAILED) == State.EXPIRED
    assert driver.row(task)["error"]["cause"] == {"type": "test", "message": "It failed."}


def test_a_cancel_wins_over_a_passed_deadline(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.call(lifecycle.cancel, task, reason="test")
    expire_soon(driver, task)
    assert driver.finish(task) == State.CANCELLED


def test_a_passed_deadline_refuses_the_claim_and_expires(driver: LifecycleDriver) -> None:
    task = driver.submit(deadline=datetime.now(UTC) - timedelta(seconds=1))
    driver.dispatch()
    assert driver.claim(task) is None
    assert driver.call(lifecycle.expire, task) == State.EXPIRED
    assert driver.row(task)["error"]["type"] == "expired"


def test_expiry_ends_a_running_task(driver: LifecycleDriver) -> None:
    task = driver.run(deadline=datetime.now(UTC) + timedelta(hours=1))
    assert driver.call(lifecycle.expire, task) == State.EXPIRED
    assert driver.finish(task, output="late") is None
    assert driver.sql("SELECT outcome FROM executions") == "expired"


def test_expiry_cancels_sub_tasks(driver: LifecycleDriver) -> None:
    parent = driver.run()
    [child] = driver.suspend(parent, children=["B"])
    assert driver.call(lifecycle.expire, parent) == State.EXPIRED
    assert driver.state(child) == "cancelled"


def test_cancelling_unknown_task_is_refused(driver: LifecycleDriver) -> None:
    with pytest.raises(NotFound, match="There is no task"):
        driver.call(lifecycle.cancel, uuid4(), reason="x")


# ------------------------------------------------------------------------------------------- lost messages


def test_a_lost_message_is_published_again_under_the_same_claim(driver: LifecycleDriver) -> None:
    task = driver.submit()
    driver.dispatch()
    driver.sql("UPDATE task_status SET published_at = now() - interval '1 min'")
    driver.sql("UPDATE workers SET idle_since = now() - interval '1 min'")
    options = {"lease": 10.0, "patience": 5.0, "empty_queues": ["work"]}
    assert [(m.task_id, m.claim) for m in driver.call(lifecycle.republish, **options)] == [(task, 0)]
    assert driver.call(lifecycle.republish, **options) == []
    assert driver.claim(task, 0) is not None
    assert driver.claim(task, 0) is None


@pytest.mark.parametrize(
    "given",
    [
        "UPDATE workers SET idle_since = NULL",
        "UPDATE workers SET last_seen = now() - interval '1 hour'",
        "UPDATE workers SET capabilities = '{other}'",
        "UPDATE task_status SET published_at = now()",
    ],
)
def test_message_without_available_worker_is_not_lost(driver: LifecycleDriver, given: str) -> None:
    driver.submit()
    driver.dispatch()
    driver.sql("UPDATE task_status SET published_at = now() - interval '1 min'")
    driver.sql("UPDATE workers SET idle_since = now() - interval '1 min'")
    driver.sql(given)
    assert driver.call(lifecycle.republish, lease=10.0, patience=5.0, empty_queues=["work"]) == []


# ------------------------------------------------------------------------------------------- conversations


def dispatched(driver: LifecycleDriver) -> list[UUID]:
    return [message.task_id for message in driver.dispatch()]


def test_the_tasks_of_a_conversation_take_turns(driver: LifecycleDriver) -> None:
    first, second, third = (driver.submit(conversation_id="c", priority=p) for p in (0, 50, 100))
    other = driver.submit(conversation_id="d")
    assert set(dispatched(driver)) == {first, other}
    assert dispatched(driver) == []
    driver.claim(first)
    driver.finish(first)
    assert dispatched(driver) == [second]
    driver.call(lifecycle.cancel, second, reason="enough")
    assert dispatched(driver) == [third]


def test_a_task_that_waits_keeps_its_turn(driver: LifecycleDriver) -> None:
    first = driver.run(conversation_id="c")
    second = driver.submit(conversation_id="c")
    [child] = driver.suspend(first, children=["B"])
    assert dispatched(driver) == [child]
    driver.claim(child)
    driver.finish(child)
    assert dispatched(driver) == [first]
    driver.claim(first)
    driver.finish(first, 2)
    assert dispatched(driver) == [second]


def test_a_turn_that_was_missed_is_found(driver: LifecycleDriver) -> None:
    first, second = driver.submit(conversation_id="c"), driver.submit(conversation_id="c")
    assert dispatched(driver) == [first]
    driver.claim(first)
    driver.finish(first)
    driver.sql("UPDATE task_status SET rank = minion_parked() WHERE task_id = :t", t=second)
    assert dispatched(driver) == []
    assert driver.call(lifecycle.heal_turns) == 1
    assert dispatched(driver) == [second]


def test_a_scheduled_task_is_in_nobodys_way(driver: LifecycleDriver) -> None:
    later = datetime.now(UTC) + timedelta(seconds=0.3)
    driver.submit(conversation_id="c", run_at=later)
    now = driver.submit(conversation_id="c")
    assert dispatched(driver) == [now]


def test_a_scheduled_task_that_is_due_does_not_break_in(driver: LifecycleDriver) -> None:
    early = driver.submit(conversation_id="c", run_at=datetime.now(UTC) + timedelta(hours=1))
    begun = driver.run(conversation_id="c")
    driver.sql("UPDATE task_status SET due_at = now() WHERE state = 'scheduled'")
    assert driver.call(lifecycle.wake_due) == 1
    assert dispatched(driver) == []
    driver.release(begun, charged=False)
    assert dispatched(driver) == [begun]
    driver.claim(begun)
    driver.finish(begun, 2)
    assert dispatched(driver) == [early]


def test_task_committed_late_waits_for_the_running_one(driver: LifecycleDriver) -> None:
    with driver.engine.connect() as slow:
        request = {"agent": "A", "input": {}, "conversation_id": "c"}
        late = lifecycle.accept(slow, [request])[0].task_id
        begun = driver.run(conversation_id="c")
        slow.commit()
    assert dispatched(driver) == [late], "nobody saw it when it was accepted"
    claimed = driver.claim(late)
    assert claimed is not None
    assert claimed["refused"] == {"kind": "turn", "task": str(begun)}
    assert dispatched(driver) == []
    driver.finish(begun)
    assert dispatched(driver) == [late]
    assert driver.claim(late) is not None
    assert driver.state(late) == "running"


def test_two_tasks_of_a_conversation_never_run_at_once(driver: LifecycleDriver) -> None:
    with driver.engine.connect() as slow:
        request = {"agent": "A", "input": {}, "conversation_id": "c"}
        late = lifecycle.accept(slow, [request])[0].task_id
        other = driver.submit(conversation_id="c")
        assert dispatched(driver) == [other]
        slow.commit()
    assert dispatched(driver) == [late]
    claims = concurrently(lambda: driver.claim(other), lambda: driver.claim(late))
    assert sorted("refused" in claim for claim in claims if claim) == [False, True]
    assert sorted([driver.state(other), driver.state(late)]) == ["pending", "running"]


# -------------------------------------------------------------------------------------- overtaken messages


def test_overtaken_message_is_resent_while_queue_is_full(driver: LifecycleDriver) -> None:
    lost, later = driver.submit(), driver.submit()
    driver.dispatch()

    def republished() -> list[UUID]:
        again = driver.call(lifecycle.republish, lease=10.0, patience=5.0, empty_queues=[])
        return [message.task_id for message in again]

    driver.sql("UPDATE task_status SET published_at = now() - interval '8 s' WHERE task_id = :t", t=lost)
    assert republished() == []
    driver.claim(later)
    assert republished() == [lost]
    assert republished() == [], "not before twice the patience"


def test_sub_task_inherits_the_position_of_its_parent(driver: LifecycleDriver) -> None:
    parent = driver.run()
    driver.submit(priority=0)
    [child] = driver.suspend(parent, children=["B"])
    driver.sql("UPDATE workers SET slots = 1")
    [first, *_] = dispatched(driver)
    assert first == child
