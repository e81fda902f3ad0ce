"""Requests that are accepted together leave the rows, and get the errors, that they would one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from shared.contracts.requests import TaskRequest
from shared.errors import IdempotencyConflict, MinionError
from shared.tasks import lifecycle, submission
from shared.tasks.lifecycle import Accepted
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently
from tests.support.plans import Plan, every_node, nodes_of, plans_of, rows_read

TASK = re.compile(r"task [0-9a-f-]{36}")
TABLES = ("tasks", "task_status", "budgets", "idempotency_keys", "unique_tasks")
CLOCK = {"created_at", "updated_at", "changed_at", "rank"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}

# The function of one request, which processes of release 0.2 call.
ACCEPT_ONE = text("SELECT task_id, created FROM minion_accept(:request)").bindparams(bindparam("request", type_=JSONB))
LINE = text("SELECT task_id FROM task_status ORDER BY rank, task_id")
HOURS = text(
    "SELECT task_id, CASE rank WHEN minion_parked() THEN -1 ELSE "
    "(rank + priority * 60000000 - extract(epoch FROM now())::bigint * 1000000) / 3600000000 END FROM task_status"
)

Request = dict[str, Any]
Accept = Callable[[Connection, Sequence[Request]], list[Accepted]]


@pytest.fixture
def driver(database: Engine, define: Define) -> LifecycleDriver:
    define(
        NOOP,
        agent_definition("A"),
        agent_definition("B", "other"),
        agent_definition("Checked", "other", "third", input_schema=SCHEMA),
        agent_definition("Frugal", config={"budget": {"steps": 9}}),
        agent_definition("Flat", config={"max_chain_depth": 1}),
        agent_definition("Gone", "gone"),
    )
    driver = LifecycleDriver(database)
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Gone'")
    return driver


@pytest.fixture
def ids(driver: LifecycleDriver) -> dict[str, str]:
    """The version of `Checked`, and tasks: running parents (`leaf` may have no sub-tasks), and one that has ended.

    Other tasks hold keys, have begun a conversation, and wait in it.
    """
    held = {"agent": "A", "input": {"x": 1}, "key": None, "idempotency_key": "held", "unique_key": "held"}
    driver.call(lifecycle.accept, [held])
    driver.run("A", conversation_id="begun")
    driver.submit("A", conversation_id="begun")
    about = {"key": "tenant", "labels": {"of": "parent"}, "priority": 7, "deadline": "2150-01-01T00:00:00Z"}
    parent, ended, flat = driver.run("Frugal", **about), driver.run("Frugal"), driver.run("Flat")
    [leaf] = driver.suspend(flat, children=["A"])
    driver.finish(ended)
    version = driver.sql("SELECT active_version_id FROM agents WHERE name = 'Checked'")
    return {name: str(value) for name, value in locals().items() if isinstance(value, UUID)}


def values(*choices: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


def valid_requests(ids: dict[str, str]) -> st.SearchStrategy[Request]:
    """Requests that are valid alone. In a batch, their idempotency keys may still contradict each other."""
    target = values(
        {"agent": "A"},
        {"agent": "B", "capability": "other"},
        {"agent": "Checked", "validated": ids["version"]},
        {"agent": "Checked", "validated": "00000000-0000-0000-0000-000000000000"},
        {"agent": "Checked", "capability": "third"},
        {"agent": "Frugal"},
        {"agent_version_id": ids["version"]},
        {"capability": "third"},
        {"capability": None, "agent": None, "messages": [{"role": "user", "content": "x"}]},
        {"agent": "A", "parent_id": ids["parent"], "parent_step": 3},
        {"agent": "B", "parent_id": ids["flat"], "parent_step": 4},
        {"agent": "A", "replay_of": ids["ended"]},
        {"agent": "Frugal", "replay_of": ids["parent"], "new_keys": True},
    )
    more = st.fixed_dictionaries(
        {},
        optional={
            "input": values({}, {"x": 1}, [1, "zwei"], None, {"deep": [[[[0]]]], "text": "t" * 300}),
            "input_order": values(None, {"orders": [["x", "a"]], "choices": []}),
            "namespace": values("default", None),
            "idempotency_key": values("held", "i", "j", None),
            "unique_key": values("held", "u", "v", None),
            "unique_while": values("pending", "running", None),
            "conversation_id": values("begun", "c", None),
            "key": values("tenant", None),
            "labels": values({"l": "1"}, {}, None),
            "priority": values(0, 5, -100, 100, None),
            "run_at": values("2020-01-01T00:00:00Z", "2100-01-01T00:00:00Z", None),
            "deadline": values("2200-01-01T00:00:00Z", None),
            "traceparent": values("00-" + "a" * 32 + "-" + "b" * 16 + "-01", None),
            "submitted_by": values("test", None),
            "budget": values({"tokens": 5}, {"dollars": 0.5, "on_breach": "fail"}, None),
        },
    )
    return st.builds(lambda asked, rest: {**rest, **asked}, target, more)


FAULTS: list[Request] = [
    {"agent": "Missing"},
    {"agent": "Gone"},
    {"agent": "A", "capability": "third"},
    {"agent": None, "capability": "none"},
    {"agent": None, "capability": "work"},
    {"agent": None, "capability": None, "agent_version_id": None, "messages": None},
    {"agent": "x" * 201},
    {"namespace": ""},
    {"namespace": "elsewhere"},
    {"idempotency_key": "k" * 256},
    {"unique_key": "k" * 256},
    {"unique_key": "u", "unique_while": "always"},
    {"priority": 101},
    {"priority": "many"},
    {"run_at": "yesterday-ish"},
    {"deadline": "0001-01-01T00:00:00Z"},
    {"run_at": "2100-01-01T00:00:00Z", "deadline": "2050-01-01T00:00:00Z"},
    {"traceparent": "no"},
    {"labels": ["l"]},
    {"labels": {"l": 1}},
    {"messages": []},
    {"messages": [{"role": "stranger", "content": "x"}]},
    {"budget": {"steps": 0}},
    {"budget": {"on_breach": "ask"}},
    {"budget": 3},
    {"input": {"n": int("9" * 310)}},
    {"parent_id": "00000000-0000-0000-0000-000000000000", "parent_step": 1},
    {"parent_step": 1},
    {"parent_id": "leaf", "parent_step": 1},
    {"agent_version_id": "not-a-uuid", "agent": None},
]


@st.composite
def mixed_requests(draw: st.DrawFn, ids: dict[str, str]) -> list[Request]:
    """A batch with a few invalid requests."""
    batch = draw(st.lists(valid_requests(ids), min_size=1, max_size=8))
    for fault in draw(st.lists(values(*FAULTS), min_size=1, max_size=3)):
        place = draw(st.integers(0, len(batch) - 1))
        batch[place] = {**batch[place], **named(fault, ids)}
    return batch


def named(fault: Request, ids: dict[str, str]) -> Request:
    """Return the fault with a task's id in place of its name."""
    return {field: ids.get(str(value), value) for field, value in fault.items()}


def one_by_one(connection: Connection, requests: Sequence[Request]) -> list[Accepted]:
    accepted = []
    for index, request in enumerate(requests):
        try:
            accepted.append(Accepted(*connection.execute(ACCEPT_ONE, {"request": request}).one()))
        except MinionError as error:
            raise submission.refusal(error, index, len(requests)) from None
    return accepted


def together(connection: Connection, requests: Sequence[Request]) -> list[Accepted]:
    try:
        return lifecycle.accept(connection, requests)  # type: ignore[arg-type]
    except MinionError as error:
        raise submission.refusal(error, error.detail.get("index", 0), len(requests)) from None


def outcome(connection: Connection, accept: Accept, requests: Sequence[Request]) -> Any:
    """Return all that accepting a batch leaves, or its error; everything is rolled back."""
    savepoint = connection.begin_nested()
    try:
        return _left_by(connection, accept(connection, requests))
    except MinionError as error:
        message = TASK.sub("task …", error.message)  # it may be one of the batch, with another id each time
        return type(error), message, error.detail
    except DBAPIError as error:
        return type(error.orig), str(error.orig).splitlines()[0]
    finally:
        savepoint.rollback()


def _left_by(connection: Connection, accepted: list[Accepted]) -> Any:
    """Return the answer to a batch, all rows, and the order in which tasks would run, with names for new tasks."""
    made = {task.task_id: f"task of request {n}" for n, task in enumerate(accepted) if task.created}
    assert list(made) == sorted(made), "ids are in the order of the requests"
    names = {str(task): name for task, name in made.items()}
    return (
        [(names.get(str(task.task_id), task.task_id), task.created) for task in accepted],
        {table: _rows(connection, table, names) for table in TABLES},
        [names.get(str(task), task) for (task,) in connection.execute(LINE)],
        sorted((names.get(str(task), str(task)), hours) for task, hours in connection.execute(HOURS)),
    )


def _rows(connection: Connection, table: str, names: dict[str, str]) -> list[str]:
    rows = connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} t"))
    plain = [repr(sorted((name, value) for name, value in row.items() if name not in CLOCK)) for row in rows]
    for task, name in names.items():
        plain = [row.replace(task, name) for row in plain]
    return sorted(plain)


MANY = hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(data=st.data())
def test_batch_is_accepted_as_its_requests_are(
    driver: LifecycleDriver, ids: dict[str, str], data: st.DataObject
) -> None:
    batch = data.draw(st.lists(valid_requests(ids), min_size=1, max_size=10))
    with driver.engine.connect() as connection:
        assert outcome(connection, together, batch) == outcome(connection, one_by_one, batch)


@MANY
@given(data=st.data())
def test_batch_is_refused_as_its_requests_are(
    driver: LifecycleDriver, ids: dict[str, str], data: st.DataObject
) -> None:
    batch = data.draw(mixed_requests(ids))
    with driver.engine.connect() as connection:
        assert outcome(connection, together, batch) == outcome(connection, one_by_one, batch)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_batch_is_refused_for_each_fault(driver: LifecycleDriver, ids: dict[str, str], fault: Request) -> None:
    good = {"agent": "A", "input": {}}
    batch = [good, {**good, **named(fault, ids)}, good]
    with driver.engine.connect() as connection:
        refused = outcome(connection, together, batch)
        assert isinstance(refused[0], type), "it is accepted"
        assert refused == outcome(connection, one_by_one, batch)


def test_position_of_a_refusal_by_the_database_is_named(driver: LifecycleDriver, database: Engine) -> None:
    requests = [TaskRequest(agent="A", idempotency_key=str(n)) for n in range(40)]
    submission.submit(database, requests[17:18], submitted_by="test")
    requests[17:19] = [TaskRequest(agent="B", idempotency_key=str(n)) for n in (17, 16)]
    with pytest.raises(IdempotencyConflict, match="Task 17 of 40: The idempotency key '17' was used") as refused:
        submission.submit(database, requests, submitted_by="test")
    assert refused.value.detail["index"] == 17
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_suspension_creates_its_sub_tasks_in_order(driver: LifecycleDriver) -> None:
    task = driver.run("A")
    children = driver.suspend(task, children=["A", "B", "A"])
    assert children == sorted(children)
    assert [driver.row(child)["agent"] for child in children] == ["A", "B", "A"]
    assert driver.row(task)["open_waits"] == 3


# ---------------------------------------------------------------------------------------------- concurrency


@pytest.mark.parametrize("refused", [False, True])
def test_batches_with_the_same_keys_neither_deadlock_nor_duplicate(driver: LifecycleDriver, refused: bool) -> None:
    """Even those do not that are refused, and so accepted in parts."""
    batch = [{"agent": "A", "input": {}, "idempotency_key": f"i{n}", "unique_key": f"u{n}"} for n in range(300)]
    wrong = [*batch, {"agent": "Missing", "input": {}}]

    def submit(requests: list[Request]) -> dict[str, UUID]:
        accepted = driver.call(lifecycle.accept, requests)
        return {request["idempotency_key"]: task.task_id for request, task in zip(requests, accepted, strict=True)}

    def be_refused() -> None:
        with pytest.raises(MinionError, match="Missing"):
            submit(wrong)

    others = [be_refused] * 2 if refused else []
    first, second, *_ = concurrently(lambda: submit(batch), lambda: submit(batch[::-1]), *others)
    assert first == second
    assert driver.sql("SELECT count(*) FROM tasks") == len(batch)


# ---------------------------------------------------------------------------------------------- plans


def insert_of(plans: list[Plan]) -> Plan:
    """Return the plan of the statement that inserts the tasks."""
    [plan] = [plan for plan in plans if ("CTE Scan", "targets") in nodes_of(plan)]
    return plan


def test_requests_and_their_targets_are_not_joined_by_nested_loops(driver: LifecycleDriver) -> None:
    """They would take the square of the number of different targets in a batch."""
    batch = [{"agent": "AB"[n % 2], "input": {}, "conversation_id": str(n)} for n in range(20)]
    with driver.engine.begin() as connection:
        plan = insert_of(plans_of(connection, lambda: together(connection, batch)))
    joined = {"targets", "talks"}
    loops = [node for node in every_node(plan) if node["Node Type"] == "Nested Loop"]
    assert not [node for node in loops for part in node["Plans"] if part.get("CTE Name") in joined]


def test_batch_reads_little_of_large_tables(driver: LifecycleDriver, ids: dict[str, str]) -> None:
    with driver.engine.begin() as connection:
        about = {"agent": "A", "input": {}, "conversation_id": "c"}
        many = [{**about, "idempotency_key": f"i{n}", "unique_key": f"u{n}"} for n in range(3000)]
        together(connection, many)
        connection.exec_driver_sql("ANALYZE")
    batch = [
        *({**about, "idempotency_key": f"i{n}", "unique_key": f"v{n}"} for n in range(2990, 3010)),
        *({**about, "unique_key": f"u{n}"} for n in range(2990, 3010)),
        *({"agent": "A", "input": {}, "parent_id": ids["parent"], "parent_step": n} for n in range(20)),
        *({"agent": "A", "replay_of": ids["ended"]} for _ in range(20)),
    ]
    with driver.engine.begin() as connection:
        plans = plans_of(connection, lambda: together(connection, batch))
    scans = {what for plan in plans for what in nodes_of(plan) if what[0] == "Seq Scan"}
    assert not scans & {("Seq Scan", table) for table in TABLES}
    assert rows_read(insert_of(plans)) < 50 * len(batch)
    assert sum(rows_read(plan) for plan in plans) < 100 * len(batch)
