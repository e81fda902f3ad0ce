"""Approval policies: who may approve a call, how many people must, and rules for some arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions import Client, errors
from shared.access.actors import Key
from shared.access.roles import Permission, Role, permissions_of, roles_with
from shared.access.scope import Scope
from shared.contracts.approval_policy import APPROVERS
from shared.database.connections import autocommit, get_engine, transaction
from shared.definitions.files import dump, load
from shared.definitions.store import DefinitionStore
from shared.errors import InvalidDefinition
from shared.tasks import lifecycle
from shared.tasks.approvals import judge
from shared.tasks.records import Approver
from tests.conftest import Define
from tests.integration.api.conftest import Api, Run, WithKey
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.lifecycle_driver import concurrently
from tests.support.processes import ROOT, wait_until

AMOUNT = {
    "type": "object",
    "properties": {"do": {"type": "string"}, "answer": {"type": "number"}},
    "required": ["answer"],
}
LARGE = {"properties": {"answer": {"exclusiveMinimum": 100}}}
PAY = {"do": "answer", "answer": 50}
PAY_MUCH = {"do": "answer", "answer": 500}
BY_SIZE = {"rules": [{"when": LARGE, "people": 2}]}

Open = Callable[..., Client]


@pytest.fixture
def key(http_api: Api, client: Client) -> Iterator[Open]:
    """The Python client with a new key: `key("ann", role="approver")`."""
    with ExitStack() as stack:

        def make(name: str, role: str = "approver", **bounds: Any) -> Client:
            return use(client.create_api_key(name, role, **bounds)["key"])

        def use(text: str) -> Client:
            return stack.enter_context(Client(http_api.url, text, retries=0))

        make.use = use  # type: ignore[attr-defined]
        yield make


@pytest.fixture
def policy(define: Define) -> Callable[..., str]:
    """Defines an agent whose tool, or which itself, has an approval policy: `policy(people=2)`."""

    def make(of_agent: bool = False, **rules: Any) -> str:
        tool = {**ACT, "effect": "unsafe", "input_schema": AMOUNT}
        config: dict[str, Any] = {"capabilities": ["work"]}
        agent = {"kind": "agent", "name": "Payer", "type": "function", "tool": "act", "config": config}
        (config if of_agent else tool)["approval"] = rules or True
        define(tool, agent)
        return "Payer"

    return make


@pytest.fixture
def waiting(client: Client, inline_worker: InlineWorker) -> Callable[..., UUID]:
    """Submits a task with a key and runs it until it waits for approval: `waiting(PAY, by=client)`."""

    def make(value: Any = PAY, *, by: Client = client, **fields: Any) -> UUID:
        task = by.submit("Payer", value, **fields).id
        inline_worker._round()
        assert client.why(task)["reason"] == "approval"
        return task

    return make


def ended(tasks: Tasks, inline_worker: InlineWorker, task: UUID) -> Any:
    inline_worker.run_all()
    return tasks.get(task)["output"]


# ---------------------------------------------------------------------------------------------------- who may approve


def test_roles_that_may_approve_are_those_that_may_decide() -> None:
    assert sorted(APPROVERS) == sorted(roles_with(Permission.TASKS_DECIDE))


@pytest.mark.parametrize("of_agent", [False, True])
def test_only_keys_of_the_policy_may_decide(
    client: Client, key: Open, policy: Any, waiting: Any, tasks: Tasks, inline_worker: InlineWorker, of_agent: bool
) -> None:
    ann, bob = key("ann"), key("bob")
    policy(of_agent, keys=["ann"])
    task = waiting()
    for other in (bob, client):
        for verdict in ("approve", "reject"):
            with pytest.raises(errors.Forbidden, match=r"may not decide about step 1.* names the key ann"):
                other.decide(task, verdict, step=1)
    assert "May approve: the key ann." in client.why(task)["sentence"]
    decided = ann.decide(task, "approve", step=1)
    assert (decided.state, decided.decision["approvals"], decided.decision["people"]) == ("pending", 1, 1)
    assert ended(tasks, inline_worker, task) == 50
    output = tasks.steps(task)[0]["output"]
    assert output["key"] == client.api_key("ann")["id"]
    assert [each["key"] for each in output["approvals"]] == [output["key"]]


def test_role_or_named_key_may_decide(client: Client, key: Open, policy: Any, waiting: Any) -> None:
    policy(roles=["approver"], keys=["root"])
    ann, root, other = key("ann"), key("root", "admin"), key("other", "admin")
    for wrong in (other, client):
        with pytest.raises(errors.Forbidden, match="the key root or a key with the role approver"):
            wrong.decide(waiting(), "approve", step=1)
    assert ann.decide(waiting(), "approve", step=1).state == "pending"
    assert root.decide(waiting(), "reject", step=1).state == "pending"


def test_key_is_named_by_its_id_too(client: Client, key: Open, policy: Any, waiting: Any) -> None:
    ann, namesake = key("ann"), key("ann", namespace="default")
    policy(keys=[next(each["id"] for each in client.api_keys() if each["namespace"] is None)])
    task = waiting()
    with pytest.raises(errors.Forbidden):
        namesake.decide(task, "approve", step=1)
    assert ann.decide(task, "approve", step=1).state == "pending"


def test_policy_that_names_no_key_is_reported(
    client: Client, key: Open, policy: Any, define: Define, waiting: Any, run_cli: Run
) -> None:
    key("ann"), key("bob", "operator"), key("far", namespace="elsewhere")
    names = ["ann", "bootstrap", "oidc:carl@example.com", "bob", "far", "absent"]
    tool = {**ACT, "effect": "unsafe", "input_schema": AMOUNT, "approval": {"keys": names}}
    [change] = define(tool)
    assert [warning.split("there is no active key ")[1].split()[0] for warning in change.warnings] == [
        "'bob'", "'far'", "'absent'",
    ]  # fmt: skip
    config = {"capabilities": ["work"], "approval": {"rules": [{"when": LARGE, "keys": ["absent"]}]}}
    agent = {"kind": "agent", "name": "A", "type": "function", "tool": "act", "config": config}
    assert "'absent' that may decide in the namespace 'default'" in define(agent)[0].warnings[0]
    policy(keys=names)
    why = client.why(waiting())
    assert why["facts"]["missing_keys"] == ["bob", "far", "absent"]
    assert "No active key named bob or far or absent may decide about it." in why["sentence"]
    assert "too few keys" not in why["sentence"]
    policy(keys=["ann", "absent"], people=2)
    task = waiting()
    assert "So too few keys may approve it: create the missing ones" in client.why(task)["sentence"]
    assert "So too few keys may approve it" in run_cli("why", str(task)).line
    key("absent")
    assert client.why(task)["facts"]["missing_keys"] == []
    policy(keys=["gone"], roles=["admin"])
    assert "too few keys" not in client.why(waiting())["sentence"]


def test_name_of_the_administrator_cannot_be_taken(client: Client, policy: Any, waiting: Any) -> None:
    policy(keys=["bootstrap"])
    with pytest.raises(errors.InvalidInput, match="bootstrap is the administrator's key"):
        client.create_api_key("bootstrap", "approver")
    assert client.decide(waiting(), "approve", step=1).state == "pending"


def test_policy_of_the_pinned_version_holds(client: Client, key: Open, policy: Any, waiting: Any) -> None:
    bob = key("bob")
    policy(keys=["ann"])
    task = waiting()
    policy()
    with pytest.raises(errors.Forbidden):
        bob.decide(task, "approve", step=1)
    assert bob.decide(waiting(), "approve", step=1).state == "pending"
    policy(keys=["ann"])
    with pytest.raises(errors.Forbidden):
        bob.decide(waiting(), "approve", step=1)


# ------------------------------------------------------------------------------------------------- not the submitter


@pytest.fixture
def not_submitter(policy: Any) -> None:
    policy(not_submitter=True)


def may_not(approver: Client, task: UUID, step: int = 1) -> None:
    with pytest.raises(errors.Forbidden, match="submitted this task"):
        approver.decide(task, "approve", step=step)


@pytest.mark.usefixtures("not_submitter")
def test_submitter_may_reject_but_not_approve(client: Client, key: Open, waiting: Any) -> None:
    root = key("root", "admin")
    task = waiting(by=root)
    assert "but no key that submitted the task" in client.why(task)["sentence"]
    may_not(root, task)
    assert root.decide(task, "reject", step=1).state == "pending"
    assert client.decide(waiting(by=root), "approve", step=1).state == "pending"


@pytest.mark.usefixtures("not_submitter")
def test_administrator_of_the_environment_is_a_submitter_too(client: Client, key: Open, waiting: Any) -> None:
    task = waiting()
    may_not(client, task)
    assert key("ann").decide(task, "approve", step=1).state == "pending"


@pytest.mark.usefixtures("not_submitter")
def test_rotated_key_is_the_same_submitter(client: Client, key: Any, waiting: Any) -> None:
    task = waiting(by=key("root", "admin"))
    for _ in range(2):
        rotated = key.use(client.rotate_api_key("root")["key"])
        may_not(rotated, task)


def test_submitter_of_the_root_task_is_that_of_its_sub_tasks(
    client: Client, key: Open, policy: Any, define: Define, inline_worker: InlineWorker
) -> None:
    policy(not_submitter=True)
    config = {"capabilities": ["work"]}
    define(
        {"kind": "agent", "name": "Inner", "type": "function", "relations": [{"agent": "Payer"}], "config": config},
        {"kind": "agent", "name": "Outer", "type": "function", "relations": [{"agent": "Inner"}], "config": config},
    )
    root = key("root", "admin")
    for submitter, other in ((root, client), (client, root)):
        task = submitter.submit("Outer", PAY).id
        for _ in range(3):
            inline_worker._round()
        [deepest] = [each for each in client.tree(task) if each.agent == "Payer"]
        may_not(submitter, deepest.id)
        assert other.decide(deepest.id, "approve", step=1).state == "pending"


@pytest.mark.usefixtures("not_submitter")
def test_keys_of_original_and_replay_are_submitters(
    client: Client, key: Open, waiting: Any, inline_worker: InlineWorker
) -> None:
    first, second = key("first", "admin"), key("second", "admin")
    task = waiting(by=first)
    client.cancel(task)
    replays = [
        second.replay(task).id,
        next(second.replay_many(agent="Payer", states=["cancelled"], again=True))["replayed_as"],
    ]
    for again in (UUID(str(each)) for each in replays):
        inline_worker._round()
        may_not(first, again)
        may_not(second, again)
        assert client.decide(again, "approve", step=1).state == "pending"


@pytest.mark.usefixtures("not_submitter")
def test_keys_that_wrote_or_ran_a_schedule_are_submitters(
    client: Client, key: Open, database: Engine, inline_worker: InlineWorker
) -> None:
    writer, editor, runner = (key(name, "admin") for name in ("writer", "editor", "runner"))
    fields: dict[str, Any] = {"request": {"agent": "Payer", "input": PAY}}
    writer.put_schedule("nightly", interval_seconds=3600, **fields)
    editor.put_schedule("nightly", interval_seconds=7200, **fields)
    task = runner.run_schedule("nightly").id
    inline_worker._round()
    for one in (writer, editor, runner):
        may_not(one, task)
    with database.begin() as connection:
        # As the scheduler of release 0.2 submits it.
        request = {**fields["request"], "submitted_by": "schedule:nightly"}
        by_time = connection.scalar(
            text("SELECT task_id FROM minion_accept(CAST(:request AS jsonb))"), {"request": json.dumps(request)}
        )
    inline_worker._round()
    for one in (writer, editor):
        may_not(one, by_time)
    assert runner.decide(by_time, "approve", step=1).state == "pending"
    assert client.decide(task, "approve", step=1).state == "pending"


# -------------------------------------------------------------------------------------------------------- two people


@pytest.fixture
def pair(key: Open) -> tuple[Client, Client]:
    return key("ann"), key("bob")


def test_two_keys_must_approve(
    client: Client,
    policy: Any,
    waiting: Any,
    pair: tuple[Client, Client],
    tasks: Tasks,
    inline_worker: InlineWorker,
    run_cli: Run,
) -> None:
    ann, bob = pair
    policy(people=2)
    task = waiting()
    assert "2 people with different keys must approve" in client.why(task)["sentence"]
    decided = ann.decide(task, "approve", step=1, reason="looks right")
    assert (decided.state, decided.decision["approvals"], decided.decision["people"]) == ("waiting", 1, 2)
    why = client.why(task)
    assert "1 of 2, approved by ann mk_" in why["sentence"]
    assert [each["reason"] for each in why["facts"]["approved_by"]] == ["looks right"]
    assert "1 of 2, approved by ann mk_" in run_cli("show", str(task)).line
    assert ended_or_not(inline_worker, tasks, task) == "waiting"
    assert bob.decide(task, "approve", step=1).state == "pending"
    assert ended(tasks, inline_worker, task) == 50
    [step] = [step for step in client.steps(task) if step["kind"] == "wait"]
    assert [each["by"].split()[0] for each in step["approvals"]["by"]] == ["ann", "bob"]
    assert [each["by"].split()[0] for each in step["output"]["approvals"]] == ["ann", "bob"]


def ended_or_not(inline_worker: InlineWorker, tasks: Tasks, task: UUID) -> str:
    inline_worker._round()
    return str(tasks.get(task)["state"])


def test_payloads_of_approvals_are_masked(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client], with_key: WithKey
) -> None:
    policy(people=2)
    task = waiting(PAY)
    value = {**PAY, "do": "confidential"}
    pair[0].decide(task, "approve", step=1, value=value, reason="because it is confidential")
    blind = with_key("operator")
    for path in ("why", "steps"):
        shown = blind.get(f"/v1/tasks/{task}/{path}").text
        assert "confidential" not in shown
        assert "ann mk_" in shown
        assert "confidential" in with_key("approver").get(f"/v1/tasks/{task}/{path}").text


def test_decisions_are_in_the_audit_log(client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client]) -> None:
    policy(people=2)
    task = waiting()
    for one in pair:
        one.decide(task, "approve", step=1)
    rows = [row for row in client.audit(act="task.decide") if row["target"] == str(task)]
    assert [(row["actor"], row["after"]["approvals"], row["after"]["needed"]) for row in rows] == [
        ("bob", 2, 2),
        ("ann", 1, 2),
    ]
    assert "answer" not in json.dumps(rows)


def test_one_key_counts_once(client: Client, policy: Any, waiting: Any, key: Any) -> None:
    policy(people=2)
    ann = key("ann")
    task = waiting()
    again = key.use(client.rotate_api_key("ann")["key"])
    for same in (ann, ann, again):
        decided = same.decide(task, "approve", step=1)
        assert (decided.state, decided.decision["approvals"]) == ("waiting", 1)
    assert client.decide(task, "approve", step=1).state == "pending"


def test_approval_of_a_revoked_key_does_not_count(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client]
) -> None:
    policy(people=2)
    task = waiting()
    pair[0].decide(task, "approve", step=1)
    client.revoke_api_key("ann")
    assert client.why(task)["facts"]["approved_by"] == []
    assert pair[1].decide(task, "approve", step=1).state == "waiting"
    assert client.decide(task, "approve", step=1).state == "pending"


def test_reject_by_one_ends_it(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client], tasks: Tasks, inline_worker: InlineWorker
) -> None:
    policy(people=2)
    task = waiting()
    pair[0].decide(task, "approve", step=1)
    assert pair[1].decide(task, "reject", step=1, reason="no").state == "pending"
    inline_worker.run_all()
    assert tasks.get(task)["error"]["message"] == "act was rejected: no."
    [step] = tasks.steps(task)
    assert [each["by"].split()[0] for each in step["error"]["decision"]["approvals"]] == ["ann"]


def test_edit_by_the_second_resets_the_first(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client], tasks: Tasks, inline_worker: InlineWorker
) -> None:
    ann, bob = pair
    policy(people=2)
    task = waiting()
    seen = client.why(task)["facts"]["proposal"]
    ann.decide(task, "approve", proposal=seen)
    assert bob.decide(task, "approve", proposal=seen, value={**PAY, "answer": 60}).decision["approvals"] == 1
    why = client.why(task)
    assert why["facts"]["proposed"]["answer"] == 60
    assert "edited by an approver" in why["sentence"]
    # What Ann saw is no longer what waits, and a step's number does not say what she saw.
    for address in ({"proposal": seen}, {"step": 1}):
        with pytest.raises(errors.Conflict):
            ann.decide(task, "approve", **address)
    assert ann.decide(task, "approve", proposal=why["facts"]["proposal"]).state == "pending"
    assert ended(tasks, inline_worker, task) == 60


def test_same_arguments_in_another_order_are_the_same(
    policy: Any, waiting: Any, pair: tuple[Client, Client], tasks: Tasks, inline_worker: InlineWorker
) -> None:
    policy(people=2)
    task = waiting()
    pair[0].decide(task, "approve", step=1)
    assert pair[1].decide(task, "approve", step=1, value=dict(reversed(PAY.items()))).state == "pending"


@pytest.mark.parametrize("edits", [(60, 70), (60, 60), (None, 60), (None, None)])
def test_simultaneous_approvals_count_only_for_the_same_arguments(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client], tasks: Tasks, edits: tuple[Any, Any]
) -> None:
    policy(people=2)
    values = [None if edit is None else {**PAY, "answer": edit} for edit in edits]
    for _ in range(5):
        task = waiting()
        concurrently(*(partial(approve_or_conflict, who, task, value) for who, value in zip(pair, values, strict=True)))
        approved = tasks.steps(task)[0]["approvals"]["by"]
        assert (tasks.get(task)["state"] == "pending") == (len(approved) == 2)
        assert len(approved) == 1 or values[0] == values[1]
        client.cancel(task)


def approve_or_conflict(who: Client, task: UUID, value: Any) -> None:
    with suppress(errors.Conflict):
        who.decide(task, "approve", value=value, step=1)


@pytest.mark.parametrize("edit", [None, 60])
def test_second_decision_waits_for_the_first_and_sees_it(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client], database: Engine, edit: int | None
) -> None:
    policy(people=2)
    task = waiting()
    value = None if edit is None else {**PAY, "answer": edit}
    identity = client.api_key("ann")["id"]
    with ThreadPoolExecutor() as threads, database.connect() as first:
        judged = client.why(task)["facts"]["proposal"]
        approver: Approver = {"key": identity, "role": "approver", "rules": [], "judged": judged}
        lifecycle.decide(first, task, "approve", who="ann", step=1, value=value, approver=approver)
        second = threads.submit(pair[1].decide, task, "approve", step=1)
        wait_until(lambda: waits_for_a_lock(database), "the second decision waits")
        first.commit()
        if edit is None:
            assert second.result().state == "pending"
        else:
            with pytest.raises(errors.Conflict, match="were edited by an approver since they were proposed"):
                second.result()


def waits_for_a_lock(database: Engine) -> bool:
    with database.connect() as connection:
        return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def test_many_simultaneous_approvals_of_one_key_count_once(policy: Any, waiting: Any, key: Open, tasks: Tasks) -> None:
    policy(people=2)
    task, ann = waiting(), key("ann")
    states = concurrently(*[lambda: ann.decide(task, "approve", step=1).state] * 8)
    assert (set(states), tasks.get(task)["state"]) == ({"waiting"}, "waiting")


# ------------------------------------------------------------------------------------------------------------- rules


def test_condition_decides_how_many_must_approve(
    client: Client, policy: Any, waiting: Any, pair: tuple[Client, Client]
) -> None:
    policy(**BY_SIZE)
    assert pair[0].decide(waiting(PAY), "approve", step=1).state == "pending"
    task = waiting(PAY_MUCH)
    assert client.why(task)["facts"]["people"] == 2
    assert pair[0].decide(task, "approve", step=1).state == "waiting"
    assert pair[1].decide(task, "approve", step=1).state == "pending"


@pytest.mark.parametrize(("proposed", "edited"), [(PAY, PAY_MUCH), (PAY_MUCH, PAY)])
def test_no_edit_avoids_a_rule(
    policy: Any, waiting: Any, pair: tuple[Client, Client], client: Client, proposed: Any, edited: Any
) -> None:
    policy(**BY_SIZE)
    task = waiting(proposed)
    assert pair[0].decide(task, "approve", step=1, value=edited).state == "waiting"
    seen = client.why(task)["facts"]
    assert (seen["people"], seen["proposed"]) == (2, edited)
    assert pair[1].decide(task, "approve", proposal=seen["proposal"]).state == "pending"


def test_rule_adds_to_what_all_calls_need(policy: Any, waiting: Any, key: Open, client: Client) -> None:
    policy(keys=["ann", "bob"], rules=[{"when": LARGE, "keys": ["bob"], "not_submitter": True}])
    ann, bob = key("ann", "admin"), key("bob", "admin")
    assert ann.decide(waiting(PAY), "approve", step=1).state == "pending"
    task = waiting(PAY_MUCH, by=bob)
    with pytest.raises(errors.Forbidden, match="the key ann or bob, which must also be the key bob"):
        ann.decide(task, "approve", step=1)
    may_not(bob, task)
    assert bob.decide(waiting(PAY_MUCH, by=ann), "approve", step=1).state == "pending"


def test_messages_need_what_all_rules_need(
    client: Client, define: Define, pair: tuple[Client, Client], inline_worker: InlineWorker
) -> None:
    approval = {"rules": [{"when": {"type": "object", "required": ["amount"]}, "people": 2}]}
    config = {"capabilities": ["work"], "approval": approval}
    define({"kind": "agent", "name": "Talker", "model": "offline", "config": config})
    task = client.submit("Talker", messages=[{"role": "user", "content": "Pay 500"}]).id
    inline_worker._round()
    assert pair[0].decide(task, "approve", step=1).state == "waiting"
    assert pair[1].decide(task, "approve", step=1).state == "pending"


@pytest.mark.parametrize(
    ("approval", "taught"),
    [
        ("yes", "must be true, false or a policy"),
        ({}, "`approval: true` lets every key approve that may decide"),
        ({"roles": ["operator"]}, "'operator' may not decide about tasks: choose approver or admin"),
        ({"people": 0}, "approval.people"),
        ({"keys": ["ann"], "people": 2}, "2 of the keys must approve, and only 1 may"),
        ({"keys": ["ann", "ann"]}, "'ann' is listed twice"),
        ({"rules": [{"when": LARGE}]}, "a rule must require something"),
        ({"rules": [{"when": "amount > 100", "people": 2}]}, "must be a JSON Schema that the arguments match, such as"),
        ({"rules": [{"when": {}, "people": 2}]}, "What all calls need belongs beside `rules`"),
        ({"rules": [{"when": {"answer": {"minimum": 1}}, "people": 2}]}, "belongs under `properties`"),
        ({"rules": [{"when": {"properties": {"answer": {"minimun": 1}}}, "people": 2}]}, "no keyword of JSON Schema"),
        ({"rules": [{"when": {"properties": {"answer": {"minimum": "1"}}}, "people": 2}]}, r"\$.properties.answer"),
        ({"rules": [{"when": {"properties": {"anser": {"minimum": 1}}}, "people": 2}]}, "Did you mean 'answer'?"),
        (
            {"rules": [{"when": {"properties": {"answer": {"const": "x"}}}, "people": 2}]},
            "no arguments that the input schema allows can match",
        ),
        ({"persons": 2}, "approval.persons"),
    ],
)
@pytest.mark.parametrize("of_agent", [False, True])
def test_wrong_policy_is_refused_with_the_reason(define: Define, approval: Any, taught: str, of_agent: bool) -> None:
    tool: dict[str, Any] = {**ACT, "input_schema": AMOUNT}
    agent: dict[str, Any] = {"kind": "agent", "name": "A", "type": "function", "tool": "act", "config": {}}
    (agent["config"] if of_agent else tool)["approval"] = approval
    with pytest.raises(InvalidDefinition, match=taught):
        define(tool, agent)


# --------------------------------------------------------------------------------------- replays, and release 0.2


def replay_with(approver: Client, task: UUID, answer: int) -> Any:
    return approver.replay(task, from_step=1, edited_output={"arguments": {**PAY, "answer": answer}})


def test_replay_with_an_edited_approval_is_an_approval(
    client: Client, key: Open, policy: Any, waiting: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    root, other = key("root", "admin"), key("other", "admin")
    policy(keys=["root", "second"], rules=[{"when": LARGE, "people": 2}])
    task = waiting()
    client.cancel(task)
    with pytest.raises(errors.Forbidden, match="names the key root or second"):
        replay_with(other, task, 60)
    again = replay_with(root, task, 60).id
    assert ended(tasks, inline_worker, again) == 60
    [step] = [step for step in tasks.steps(again) if step["kind"] == "wait"]
    assert [each["key"] for each in step["approvals"]["by"]] == [client.api_key("root")["id"]]
    with pytest.raises(errors.Forbidden, match=r"by 2 different keys.*Replay from step 1 without an edit"):
        replay_with(root, task, 600)


@pytest.mark.parametrize("of_agent", [False, True])
def test_approved_call_is_not_repeated_without_an_approval(
    client: Client, key: Open, policy: Any, waiting: Any, inline_worker: InlineWorker, tasks: Tasks, of_agent: bool
) -> None:
    policy(of_agent, people=2)
    task = waiting()
    for name in ("ann", "bob"):
        key(name).decide(task, "approve", step=1)
    assert ended(tasks, inline_worker, task) == 50
    for how in ({}, {"new_keys": True}):
        with pytest.raises(errors.Conflict, match="was approved for one call: replay from step 1, so that"):
            client.replay(task, from_step=2, **how)
    assert ended(tasks, inline_worker, client.replay(task, from_step=2, edited_output=60).id) == 60
    assert ended(tasks, inline_worker, client.replay(task, from_step=3).id) == 50
    again = client.replay(task, from_step=1).id
    assert ended_or_not(inline_worker, tasks, again) == "waiting"
    client.cancel(again)
    policy()
    plain = waiting()
    client.decide(plain, "approve", step=1)
    assert ended(tasks, inline_worker, plain) == 50
    assert ended(tasks, inline_worker, client.replay(plain, from_step=2).id) == 50


def test_edited_approval_names_no_other_approver(
    client: Client, policy: Any, waiting: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    policy(keys=["bootstrap"])
    task = waiting()
    client.cancel(task)
    forged = {"arguments": PAY, "by": "ann", "key": "ann", "verdict": "approve", "approvals": [{"by": "ann"}]}
    again = client.replay(task, from_step=1, edited_output=forged).id
    assert ended(tasks, inline_worker, again) == 50
    step = tasks.steps(again)[0]
    assert step["output"] == {"arguments": PAY}
    assert [each["key"] for each in step["approvals"]["by"]] == ["bootstrap"]


@pytest.mark.usefixtures("not_submitter")
def test_replay_with_an_edited_approval_is_submitted_by_its_approver(client: Client, key: Open, waiting: Any) -> None:
    task = waiting()
    client.cancel(task)
    with pytest.raises(errors.Forbidden, match="submitted this task"):
        replay_with(key("root", "admin"), task, 60)


OLD_DECIDE = text("SELECT minion_decide(:task, 1, :verdict, NULL, NULL, 'api:0123abcd')")
OLD_REPLAY = text(
    "SELECT minion_replay_from(CAST(:request AS jsonb), :task, 1, CAST(:edited AS jsonb), 'api:0123abcd')"
)


def test_orchestrators_of_release_0_2_cannot_decide(
    client: Client, policy: Any, waiting: Any, database: Engine
) -> None:
    policy(people=2)
    task = waiting()
    for verdict in ("approve", "reject"):
        with database.connect() as connection, pytest.raises(errors.Conflict, match=r"release 0\.3 or later"):
            connection.execute(OLD_DECIDE, {"task": task, "verdict": verdict})
    client.cancel(task)
    request = {"agent": "Payer", "input": PAY, "replay_of": str(task), "submitted_by": "api"}
    values = {"task": task, "request": json.dumps(request), "edited": json.dumps({"output": {"arguments": PAY}})}
    with database.connect() as connection, pytest.raises(errors.Conflict, match=r"release 0\.3 or later"):
        connection.execute(OLD_REPLAY, values)
    policy()
    plain = waiting()
    with database.begin() as connection:
        assert connection.scalar(OLD_DECIDE, {"task": plain, "verdict": "approve"}) == "pending"


def user(name: str, role: Role, subject: str | None = None) -> Key:
    """A user who has logged in with OpenID Connect."""
    permissions = permissions_of(role)
    return Key(
        id=None, name=name, record=name, submitter=name, role=role, permissions=permissions, scope=Scope(),
        subject=subject or f"id of {name}",
    )  # fmt: skip


def decide_as(task: UUID, who: Key) -> str:
    with autocommit(get_engine()).connect() as connection:
        approver = judge(connection, task, 1, None, None, key=who)
    with transaction() as connection:
        return lifecycle.decide(connection, task, "approve", who=who.name, step=1, approver=approver).state


def test_user_with_a_new_name_is_the_same(
    client: Client, key: Open, policy: Any, waiting: Any, database: Engine
) -> None:
    """A user may change the name or address at the identity provider, but not the provider's id."""
    policy(people=2)
    task = waiting()
    before, after = (user(name, Role.ADMIN, "id-1") for name in ("oidc:ann@example.com", "oidc:eve@example.com"))
    assert [decide_as(task, each) for each in (before, after)] == ["waiting", "waiting"]
    policy(not_submitter=True)
    task = waiting()
    with database.begin() as connection:
        keys = {"task": task, "keys": [before.identity]}
        connection.execute(text("UPDATE tasks SET submitter_keys = :keys WHERE id = :task"), keys)
    with pytest.raises(errors.Forbidden, match="submitted this task"):
        decide_as(task, after)
    # No name is another's id, or a key's.
    policy(keys=["oidc:ann@example.com"])
    task = waiting()
    for name in ("oidc:eve@example.com", "oidc:id-1", "oidc:ann"):
        with pytest.raises(errors.Forbidden, match="may not decide"):
            decide_as(task, user(name, Role.ADMIN, "oidc:ann@example.com"))
    assert decide_as(task, before) == "pending"


def test_user_without_a_key_is_neither_a_key_of_that_name_nor_the_administrator(
    client: Client, key: Open, policy: Any, waiting: Any
) -> None:
    def decide(name: str, role: Role, subject: str | None = None) -> str:
        return decide_as(task, user(f"oidc:{name}", role, subject))

    key("ann")
    policy(keys=["ann", "bootstrap", "oidc:bob@example.com"])
    task = waiting()
    for name in ("ann", "bootstrap"):
        with pytest.raises(errors.Forbidden, match="may not decide"):
            decide(name, Role.ADMIN)
    assert decide("bob@example.com", Role.APPROVER) == "pending"
    policy(roles=["admin"], people=2)
    task = waiting()
    assert decide("carl", Role.ADMIN, "248289761001") == "waiting"
    assert decide("karl", Role.ADMIN, "248289761001") == "waiting"
    with pytest.raises(errors.Forbidden):
        decide("dora", Role.APPROVER)
    assert client.decide(task, "approve", step=1).state == "pending"


def test_decision_without_a_key_is_refused(policy: Any, waiting: Any) -> None:
    policy(people=2)
    task = waiting()
    with pytest.raises(errors.Conflict, match="any key that may decide"), transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="a process", step=1)


def test_example_of_the_documentation(
    client: Client, key: Open, database: Engine, pair: tuple[Client, Client], inline_worker: InlineWorker,
    tmp_path: Path,
) -> None:  # fmt: skip
    given = load(ROOT / "examples" / "approvals")
    with Session(database) as session, session.begin():
        store = DefinitionStore(session, validate_code=lambda function: None)
        store.apply(given)
        (tmp_path / "exported.yaml").write_text("---\n".join(map(dump, store.export())))
        assert {change.action for change in store.apply(load(tmp_path))} == {"unchanged"}
    task = client.submit("pay", {"to": "Otter Post", "amount": 250}).id
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET capabilities = '{payments}'"))
    inline_worker._round()
    why = client.why(task)["sentence"]
    assert "May approve: a key with the role approver, but no key that submitted the task." in why
    with pytest.raises(errors.Forbidden):
        client.decide(task, "approve", step=1)
    assert [one.decide(task, "approve", step=1).state for one in pair] == ["waiting", "pending"]


def test_command_line_says_what_is_missing(client: Client, policy: Any, waiting: Any, run_cli: Run) -> None:
    policy(people=2)
    task = waiting()
    assert "1 of 2: another key must approve the same arguments." in run_cli("approve", str(task), "--yes").line
    assert "1 of 2, approved by api:" in run_cli("why", str(task)).line
