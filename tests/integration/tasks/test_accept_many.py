"""Accepting a batch with one statement for each table does what accepting its requests one by one does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError

from shared.errors import MinionError
from shared.tasks import lifecycle
from shared.tasks.lifecycle import ACCEPT_MANY, Accepted
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently
from tests.support.plans import every_node, nodes_of, plans_of

TASK = re.compile(r"task [0-9a-f-]{36}")
TABLES = ("tasks", "task_status", "budgets", "idempotency_keys", "unique_tasks")
CLOCK = {"created_at", "updated_at", "changed_at", "rank"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}

ACCEPT_SET = text("SELECT task_id, created FROM minion_accept_set(:requests)").bindparams(
    bindparam("requests", type_=JSONB)
)
LINE = text("SELECT task_id FROM task_status ORDER BY rank, task_id")
HOUR = text(
    "SELECT task_id, CASE rank WHEN minion_parked() THEN -1 ELSE "
    "(rank + priority * 60000000 - extract(epoch FROM now())::bigint * 1000000) / 3600000000 END FROM task_status"
)

Request = dict[str, Any]


@pytest.fixture
def driver(database: Any, define: Define) -> LifecycleDriver:
    define(
        NOOP,
        agent_definition("A"),
        agent_definition("B", "other"),
        agent_definition("Checked", "other", "third", input_schema=SCHEMA),
        agent_definition("Frugal", config={"budget": {"steps": 9}}),
        agent_definition("Gone", "gone"),
    )
    driver = LifecycleDriver(database)
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Gone'")
    return driver


def values(*choices: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


def valid_requests(version: str) -> st.SearchStrategy[Request]:
    """Requests that are valid alone. In a batch, their idempotency keys may still contradict each other."""
    target = values(
        {"agent": "A"},
        {"agent": "B", "capability": "other"},
        {"agent": "Checked", "validated": version},
        {"agent": "Checked", "validated": "00000000-0000-0000-0000-000000000000"},
        {"agent": "Checked", "capability": "third"},
        {"agent": "Frugal"},
        {"agent_version_id": version},
        {"capability": "third"},
        {"capability": None, "agent": None, "messages": [{"role": "user", "content": "x"}]},
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
    {"agent": "Nobody"},
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
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"budget": {"steps": 0}},
    {"budget": {"on_breach": "ask"}},
    {"budget": 3},
    {"input": {"n": int("9" * 310)}},
    {"parent_id": "00000000-0000-0000-0000-000000000000", "parent_step": 1},
    {"parent_step": 1},
    {"agent_version_id": "not-a-uuid", "agent": None},
]


@st.composite
def mixed_requests(draw: st.DrawFn, version: str) -> list[Request]:
    """A batch with a few invalid requests."""
    batch = draw(st.lists(valid_requests(version), min_size=1, max_size=8))
    for fault in draw(st.lists(values(*FAULTS), min_size=1, max_size=3)):
        place = draw(st.integers(0, len(batch) - 1))
        batch[place] = {**batch[place], **fault}
    return batch


def one_by_one(connection: Connection, requests: Sequence[Request]) -> list[Accepted]:
    return [each for request in requests for each in lifecycle.accept(connection, [request])]


def together(connection: Connection, requests: Sequence[Request]) -> list[Accepted]:
    return [Accepted(*row) for row in connection.execute(ACCEPT_MANY, {"requests": requests})]


def as_a_set(connection: Connection, requests: Sequence[Request]) -> list[Accepted]:
    return [Accepted(*row) for row in connection.execute(ACCEPT_SET, {"requests": requests})]


def outcome(connection: Connection, accept: Any, requests: Sequence[Request]) -> Any:
    """Return all that accepting a batch leaves, or its error; everything is rolled back."""
    savepoint = connection.begin_nested()
    try:
        return _left_by(connection, accept(connection, requests))
    except MinionError as error:
        return type(error), TASK.sub("task …", error.message)  # it may be one of the batch, with another id each time
    except DBAPIError as error:
        return type(error.orig), str(error.orig).splitlines()[0]
    finally:
        savepoint.rollback()


def _left_by(connection: Connection, accepted: list[Accepted]) -> Any:
    """Return the answer to a batch, all rows, and the order in which tasks would run, with names for new tasks."""
    made = {task.task_id: f"task of request {n}" for n, task in reversed([*enumerate(accepted)]) if task.created}
    assert list(made) == sorted(made, reverse=True), "ids are in the order of the requests"
    names = {str(task): name for task, name in made.items()}
    return (
        [(names.get(str(task.task_id), task.task_id), task.created) for task in accepted],
        {table: _rows(connection, table, names) for table in TABLES},
        [names.get(str(task), task) for (task,) in connection.execute(LINE)],
        sorted((names.get(str(task), str(task)), hour) for task, hour in connection.execute(HOUR)),
    )


def _rows(connection: Connection, table: str, names: dict[str, str]) -> list[str]:
    rows = connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} t"))
    plain = [repr(sorted((name, value) for name, value in row.items() if name not in CLOCK)) for row in rows]
    for task, name in names.items():
        plain = [row.replace(task, name) for row in plain]
    return sorted(plain)


@pytest.fixture
def version(driver: LifecycleDriver) -> str:
    """The version of `Checked`, beside a task that holds keys, one that has begun, and a second of its conversation."""
    held = {"agent": "A", "input": {"x": 1}, "key": None, "idempotency_key": "held", "unique_key": "held"}
    driver.call(lifecycle.accept, [held])
    driver.run("A", conversation_id="begun")
    driver.submit("A", conversation_id="begun")
    return str(driver.sql("SELECT active_version_id FROM agents WHERE name = 'Checked'"))


MANY = hypothesis_settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(data=st.data())
def test_batch_is_accepted_as_its_requests_are(driver: LifecycleDriver, version: str, data: st.DataObject) -> None:
    batch = data.draw(st.lists(valid_requests(version), min_size=1, max_size=10))
    with driver.engine.connect() as connection:
        expected = outcome(connection, one_by_one, batch)
        assert outcome(connection, together, batch) == expected
        if isinstance(expected[0], list):
            assert outcome(connection, as_a_set, batch) == expected, "the set-based form needs no help"


@MANY
@given(data=st.data())
def test_batch_is_refused_as_its_requests_are(driver: LifecycleDriver, version: str, data: st.DataObject) -> None:
    batch = data.draw(mixed_requests(version))
    with driver.engine.connect() as connection:
        assert outcome(connection, together, batch) == outcome(connection, one_by_one, batch)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_set_based_form_refuses_each_fault(driver: LifecycleDriver, version: str, fault: Request) -> None:
    good = {"agent": "A", "input": {}}
    with driver.engine.connect() as connection:
        expected = outcome(connection, one_by_one, [{**good, **fault}])
        assert outcome(connection, together, [good, {**good, **fault}, good]) == expected


def test_batches_with_the_same_keys_do_not_deadlock(driver: LifecycleDriver) -> None:
    batch = [{"agent": "A", "input": {}, "idempotency_key": f"i{n}", "unique_key": f"u{n}"} for n in range(300)]

    def submit(requests: list[Request]) -> dict[str, UUID]:
        accepted = driver.call(lifecycle.accept, requests)
        return {request["idempotency_key"]: task.task_id for request, task in zip(requests, accepted, strict=True)}

    first, second = concurrently(lambda: submit(batch), lambda: submit(batch[::-1]))
    assert first == second
    assert driver.sql("SELECT count(*) FROM tasks") == len(batch)


def test_targets_of_a_batch_are_not_joined_by_nested_loops(driver: LifecycleDriver) -> None:
    """They would take the square of the number of its agents."""
    batch = [{"agent": "AB"[n % 2], "input": {}} for n in range(20)]
    with driver.engine.begin() as connection:
        plans = plans_of(connection, lambda: lifecycle.accept(connection, batch))
    [plan] = [plan for plan in plans if ("CTE Scan", "targets") in nodes_of(plan)]
    joins = [node for node in every_node(plan) if ("CTE Scan", "targets") in nodes_of(node)]
    print([ (n["Node Type"]) for n in joins])
    assert "Nested Loop" not in [node["Node Type"] for node in joins]
