"""`SELECT minion_submit(…)`: the entry point for callers with a database connection and no Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from orchestrator.preparer import prepare_pending
from orchestrator.replay import replay
from shared.database.connections import EXPECTED, expected_error
from shared.errors import (
    AmbiguousRoute,
    Conflict,
    IdempotencyConflict,
    InvalidInput,
    MinionError,
    TooLarge,
    UnknownAgent,
    UnknownCapability,
)
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.tasks.test_submission import SEARCH
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

WITH_VIDEO = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video"}]}
Connect = Callable[[], psycopg.Connection[Any]]


@pytest.fixture
def driver(database: Engine, define: Define) -> LifecycleDriver:
    define(
        NOOP,
        agent_definition("Open", "open", description="Opens doors"),
        agent_definition("Search", "search", "shared", input_schema=SEARCH, description="Searches for boats"),
        agent_definition("Other", "shared"),
        agent_definition("Gone", "gone"),
    )
    driver = LifecycleDriver(database, "open", "search")
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Gone'")
    return driver


@pytest.fixture
def connect(driver: LifecycleDriver) -> Connect:
    """A stranger's connection: psycopg alone, none of our settings."""
    address = make_url(driver.engine.url).set(drivername="postgresql").render_as_string(hide_password=False)
    return lambda: psycopg.connect(address)


def submit(connection: psycopg.Connection[Any], **values: Any) -> UUID:
    """Calls `minion_submit` with named arguments; dictionaries and lists become JSON."""
    casts = {
        "input": "::jsonb",
        "messages": "::jsonb",
        "labels": "::jsonb",
        "run_at": "::timestamptz",
        "deadline": "::timestamptz",
    }
    named = ", ".join(f"{name} => %({name})s{casts.get(name, '')}" for name in values)
    plain = {
        name: json.dumps(value)
        if name in ("input", "messages", "labels") and not isinstance(value, str | None)
        else value
        for name, value in values.items()
    }
    row = connection.execute(f"SELECT minion_submit({named})", plain).fetchone()  # type: ignore[arg-type]
    assert row is not None
    task: UUID = row[0]
    return task


def submitted(connect: Connect, **values: Any) -> UUID:
    with connect() as connection:
        return submit(connection, **values)


def refused(connect: Connect, kind: type[MinionError], **values: Any) -> str:
    """The message with which a request is refused, as an error of class MN; nothing was stored."""
    with connect() as connection:
        with pytest.raises(psycopg.Error) as caught:
            submit(connection, **values)
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (0,)
    assert EXPECTED[str(caught.value.sqlstate)] is kind
    error = expected_error(caught.value)
    assert error is not None
    return error.message


# ------------------------------------------------------------------------------------------- in a transaction


def test_the_task_exists_if_and_only_if_the_transaction_commits(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        task = submit(connection, agent="Open", input={"x": 1})
        assert driver.sql("SELECT count(*) FROM tasks") == 0
        connection.rollback()
        assert driver.sql("SELECT count(*) FROM tasks") == 0
        task = submit(connection, agent="Open", input={"x": 1})
        connection.commit()
    row = driver.row(task)
    assert (row["state"], row["input"], row["submitted_by"]) == ("pending", {"x": 1}, "sql:minions")


def test_it_can_be_called_in_one_word(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        row = connection.execute("SELECT minion_submit('Open')").fetchone()
    assert row is not None
    assert driver.row(row[0])["input"] == {}


def test_it_can_be_called_for_each_row_of_a_table(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        connection.execute(
            "SELECT minion_submit('Open', jsonb_build_object('n', n)) FROM generate_series(1, 50) AS s (n)"
        )
    assert driver.sql("SELECT count(*) FROM tasks") == 50
    assert len(driver.dispatch()) == 50


def test_submit_works_with_any_search_path(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS somebody")
        connection.execute("SET search_path = somebody")
        connection.execute("CREATE TEMPORARY TABLE agents (name text)")
        connection.execute("SELECT public.minion_submit('Open')")
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_committed_task_notifies_the_dispatcher(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as listening, connect() as connection:
        listening.autocommit = True
        listening.execute("LISTEN minion_pending")
        submit(connection, agent="Open")
        assert list(listening.notifies(timeout=0.05)) == []
        submit(connection, agent="Open")
        connection.commit()
        assert [notice.channel for notice in listening.notifies(timeout=5, stop_after=1)] == ["minion_pending"]


def test_thirteen_parameters_of_0_1_work_by_position(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        row = connection.execute(
            "SELECT minion_submit('Open', '{\"x\": 1}', 'open', NULL, 'idempotency', 'tenant', '{\"a\": \"b\"}', 7, "
            "now() + interval '1 hour', now() + interval '2 hours', 'talk', 'default', NULL)"
        ).fetchone()
    assert row is not None
    task = driver.row(row[0])
    assert (task["state"], task["key"], task["priority"], task["conversation_id"]) == ("scheduled", "tenant", 7, "talk")


# ---------------------------------------------------------------------------------------------- unique tasks


def test_unique_key_returns_the_task_that_holds_it(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Open", unique_key="k")
    assert submitted(connect, agent="Open", unique_key="k", input={"other": 1}) == task
    driver.again(task)
    assert submitted(connect, agent="Open", unique_key="k") == task
    driver.finish(task)
    assert submitted(connect, agent="Open", unique_key="k") != task


def test_a_unique_key_may_be_held_until_the_task_starts(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Open", unique_key="k", unique_while="pending")
    assert submitted(connect, agent="Open", unique_key="k", unique_while="pending") == task
    driver.again(task)
    assert submitted(connect, agent="Open", unique_key="k", unique_while="pending") != task


def test_unique_key_is_free_after_rollback(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        task = submit(connection, agent="Open", unique_key="k")
        connection.rollback()
    assert submitted(connect, agent="Open", unique_key="k") != task


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"agent": "Nobody"}, UnknownAgent, "There is no agent named 'Nobody'"),
        ({"agent": "x" * 200}, UnknownAgent, "There is no agent named"),
        ({"agent": None, "capability": "nothing"}, UnknownCapability, "No agent offers the capability 'nothing'"),
        ({"agent": None, "capability": "shared"}, AmbiguousRoute, "Other, Search"),
        ({"agent": "Search", "capability": "open"}, UnknownCapability, "it offers search, shared"),
        ({"agent": "Gone"}, Conflict, "is disabled"),
        ({"agent": None}, InvalidInput, "Name an agent or a capability"),
        ({"agent": "x" * 201}, InvalidInput, "agent has 201 characters"),
        ({"agent": "Open", "namespace": ""}, InvalidInput, "namespace has 0 characters"),
        ({"agent": "Open", "namespace": "other"}, UnknownAgent, "no agent"),
        ({"agent": "Open", "idempotency_key": ""}, InvalidInput, "idempotency_key has 0 characters"),
        ({"agent": "Open", "idempotency_key": "x" * 256}, InvalidInput, "idempotency_key has 256 characters"),
        ({"agent": "Open", "conversation_id": "x" * 100_000}, InvalidInput, "conversation_id has 100000 characters"),
        ({"agent": "Open", "key": "x" * 100_000}, InvalidInput, "key has 100000 characters"),
        ({"agent": "Open", "traceparent": "x"}, InvalidInput, "traceparent"),
        ({"agent": "Open", "priority": 101}, InvalidInput, "priority is 101"),
        ({"agent": "Open", "priority": -2_000_000_000}, InvalidInput, "priority is -2000000000"),
        ({"agent": "Open", "run_at": "infinity"}, InvalidInput, "run_at must be a time"),
        ({"agent": "Open", "deadline": "-infinity"}, InvalidInput, "deadline must be a time"),
        ({"agent": "Open", "deadline": "20000-01-01"}, InvalidInput, "deadline must be a time"),
        ({"agent": "Open", "run_at": "2031-01-01", "deadline": "2030-01-01"}, InvalidInput, "run_at must be before"),
        ({"agent": "Open", "unique_key": ""}, InvalidInput, "unique_key must have 1 to 255 characters"),
        ({"agent": "Open", "unique_key": "x" * 256}, InvalidInput, "unique_key must have 1 to 255 characters"),
        (
            {"agent": "Open", "unique_key": "k", "unique_while": "x"},
            InvalidInput,
            "unique_while must be pending or running",
        ),
        ({"agent": "Open", "labels": [1]}, InvalidInput, "labels must be an object"),
        ({"agent": "Open", "labels": "5"}, InvalidInput, "labels must be an object"),
        ({"agent": "Open", "labels": {"a": 1}}, InvalidInput, "labels must be an object"),
        ({"agent": "Open", "labels": {"a": ["b"]}}, InvalidInput, "labels must be an object"),
        ({"agent": "Open", "labels": {"a": "x" * 100_000}}, InvalidInput, "labels must be an object"),
        ({"agent": "Open", "messages": '"hello"'}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": []}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": {}}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": "5"}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": ["hello"]}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": [None]}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": [{"role": "user"}]}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": [{"role": "king", "content": "x"}]}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": [{"role": "user", "content": 5}]}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "messages": [WITH_VIDEO]}, InvalidInput, "blocks of type 'video' are not"),
        ({"agent": None, "messages": "5"}, InvalidInput, "messages must be a list"),
        ({"agent": "Open", "input": "9" * 400}, InvalidInput, "a number of more than 300 digits"),
        ({"agent": "Open", "input": '{"a": [-1e301]}'}, InvalidInput, "a number of more than 300 digits"),
        ({"agent": "Open", "input": "[" * 102 + "]" * 102}, InvalidInput, "nested deeper than 100 levels"),
        ({"agent": "Open", "input": '{"a":' * 101 + "1" + "}" * 101}, InvalidInput, "nested deeper than 100 levels"),
        ({"agent": "Open", "input": json.dumps("x" * (20 << 20))}, TooLarge, "at most 1048576 are accepted"),
        ({"agent": "Open", "messages": [{"role": "user", "content": "x" * (2 << 20)}]}, TooLarge, "at most 1048576"),
    ],
)
def test_invalid_submissions_are_refused(
    driver: LifecycleDriver, connect: Connect, values: dict[str, Any], kind: type[MinionError], words: str
) -> None:
    assert words in refused(connect, kind, **values)


@pytest.mark.parametrize("value", ["{", "NaN", "Infinity", "'x'", r'"\u0000"', r'"\ud800"', "", "[1,]", "[" * 100_000])
def test_postgres_refuses_invalid_json(driver: LifecycleDriver, connect: Connect, value: str) -> None:
    with connect() as connection, pytest.raises(psycopg.Error):
        submit(connection, agent="Open", input=value)
    assert driver.sql("SELECT count(*) FROM tasks") == 0


@pytest.mark.parametrize(
    "value",
    ["null", "0", "false", '""', "[]", "[" * 101 + "]" * 101, "9" * 300, "1" + "0" * 299, "1e-400", "0." + "3" * 400],
)
def test_accepted_input_can_be_read(driver: LifecycleDriver, connect: Connect, value: str) -> None:
    task = submitted(connect, agent="Open", input=value)
    assert driver.row(task)["input"] == json.loads(value)
    driver.dispatch()
    assert driver.state(task) == "queued"


@pytest.mark.parametrize("value", ['{"a": 1, "b": 2, "a": 1}', r'[5, {"b": [{"a": 1, "\u0061": 2}]}]'])
def test_duplicate_key_is_refused_in_json_input(driver: LifecycleDriver, connect: Connect, value: str) -> None:
    ask = "SELECT minion_submit_json('Open', %s::json)"
    with connect() as connection, pytest.raises(psycopg.DatabaseError) as caught:
        connection.execute(ask, [value])
    assert isinstance(expected_error(caught.value), InvalidInput)
    assert "the key 'a' twice" in str(caught.value)
    with connect() as connection:
        assert connection.execute(ask, ['[{"a": 1, "b": {"a": 1}}, {"a": "a"}]']).fetchone() is not None


# ------------------------------------------------------------------------------------------ checked afterwards


def test_a_violation_ends_the_task_with_all_faults(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Search", input={"query": "x", "limit": 0})
    assert driver.state(task) == "pending"
    prepare_pending(driver.engine)
    row = driver.row(task)
    assert (row["state"], row["error"]["type"], row["claim"]) == ("failed", "invalid_input", 0)
    assert [fault["path"] for fault in row["error"]["violations"]] == ["$.limit", "$.query"]


def test_a_checked_task_goes_to_the_queue_that_was_asked_for(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Search", input={"query": "boats"}, capability="search")
    assert [(message.task_id, message.queue) for message in driver.dispatch()] == [(task, "search")]


@pytest.mark.parametrize("stored", [None, "null"])
def test_task_of_agent_without_schema_needs_no_preparer(
    driver: LifecycleDriver, connect: Connect, stored: str | None
) -> None:
    assert driver.sql("SELECT count(*) FROM agent_versions WHERE input_schema = 'null'") == 0
    if stored is not None:  # as releases before 0.3 stored it
        with driver.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("UPDATE agent_versions SET input_schema = 'null' WHERE input_schema IS NULL"))
    task = submitted(connect, agent="Open", input={"any": "thing"})
    [message] = driver.call(lifecycle.dispatch, lease=3600.0, window=1000)
    assert (message.task_id, message.queue) == (task, "open")
    driver.claim(task)
    children = driver.suspend(task, children=["Open", "Search"])
    asked = "SELECT capability FROM task_status WHERE task_id = :task"
    assert [driver.sql(asked, task=child) for child in children] == ["open", None]


def test_messages_without_an_input_are_the_input(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Search", messages=[{"role": "user", "content": "red boats"}])
    assert [message.task_id for message in driver.dispatch()] == [task]
    assert driver.row(task)["input"] is None


@pytest.mark.parametrize("agent", ["Open", None])
@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "messages[1].tool_calls: messages with"),
    ],
)
def test_messages_that_are_not_text_are_refused(
    driver: LifecycleDriver, connect: Connect, agent: str | None, message: dict[str, Any], words: str
) -> None:
    """PostgreSQL does not look into messages that far: the preparer does. A replay is refused too."""
    task = submitted(connect, agent=agent, messages=[{"role": "user", "content": "search for boats"}, message])
    prepare_pending(driver.engine)
    again = driver.call(replay, task, pinned=False, submitted_by="test").task_id
    prepare_pending(driver.engine)
    for refused in (task, again):
        row = driver.row(refused)
        assert (row["state"], row["claim"], row["error"]["type"]) == ("failed", 0, "invalid_input")
        assert words in row["error"]["message"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "x"}, "messages[1]: messages of role 'tool' are not supported yet."),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "audio", "source": {}}]},
            "messages[1].content[1]: blocks of type 'audio' are not supported here.",
        ),
    ],
)
def test_unknown_content_is_refused_at_once(
    driver: LifecycleDriver, connect: Connect, message: Any, words: str
) -> None:
    with connect() as connection, pytest.raises(psycopg.DatabaseError) as caught:
        submit(connection, agent="Open", messages=[{"role": "user", "content": "hello"}, message])
    assert words in str(caught.value)


def test_messages_without_an_agent_are_routed(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent=None, messages=[{"role": "user", "content": "search for boats"}])
    assert driver.row(task)["agent"] is None
    prepare_pending(driver.engine)
    row = driver.row(task)
    assert (row["agent"], row["agent_version"], row["capability"], row["state"]) == ("Search", 1, "search", "pending")


@pytest.mark.parametrize(
    "content", ["", "the of and", "zebra", "'", "\\", "a\\b 'c' | & ! ( ) : * <->", "C:\\temp\\x", "🙂" * 5000]
)
def test_message_without_fitting_agent_lists_candidates(
    driver: LifecycleDriver, connect: Connect, content: str
) -> None:
    task = submitted(connect, agent=None, messages=[{"role": "user", "content": content}])
    prepare_pending(driver.engine)
    error = driver.row(task)["error"]
    assert error["type"] == "ambiguous_route"
    assert error["candidates"] == ["Open", "Other", "Search"]


def test_one_bad_task_does_not_hold_up_the_others(driver: LifecycleDriver, connect: Connect) -> None:
    bad = [submitted(connect, agent="Search", input=value) for value in ("null", "[]", '{"query": 1}')]
    good = submitted(connect, agent="Search", input={"query": "boats"})
    assert [message.task_id for message in driver.dispatch()] == [good]
    assert {driver.state(task) for task in bad} == {"failed"}


# ------------------------------------------------------------------------------------------------ idempotency


def test_same_key_with_another_payload_is_refused(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Open", input={"a": 1}, idempotency_key="k")
    assert submitted(connect, agent="Open", input='{"a": 1.0}', idempotency_key="k") == task
    with connect() as connection, pytest.raises(psycopg.Error) as caught:
        submit(connection, agent="Open", input={"a": 2}, idempotency_key="k")
    assert EXPECTED[str(caught.value.sqlstate)] is IdempotencyConflict


def test_many_connections_with_one_key_make_one_task(driver: LifecycleDriver, connect: Connect) -> None:
    tasks = concurrently(*[lambda: submitted(connect, agent="Open", idempotency_key="k")] * 10)
    assert len(set(tasks)) == 1
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_key_is_free_after_rollback(driver: LifecycleDriver, connect: Connect) -> None:
    with connect() as connection:
        submit(connection, agent="Open", input={"a": 1}, idempotency_key="k")
        connection.rollback()
    assert submitted(connect, agent="Open", input={"a": 2}, idempotency_key="k")


KEY_GOES_MEANWHILE = """
    CREATE FUNCTION pg_temp.forget() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN DELETE FROM idempotency_keys WHERE task_id = '{task}'; RETURN NULL; END $$;
    CREATE TRIGGER forget AFTER INSERT ON idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.forget()
"""


def test_key_deleted_while_being_used(driver: LifecycleDriver, connect: Connect) -> None:
    task = submitted(connect, agent="Open", idempotency_key="k")
    with connect() as connection:
        # The statement that meets the key is followed by its end, as when retention deletes the task just then.
        connection.execute(KEY_GOES_MEANWHILE.format(task=task))
        later = submit(connection, agent="Open", idempotency_key="k")
        assert later not in (None, task)
        connection.execute("DROP TRIGGER forget ON idempotency_keys")
    assert driver.state(later) == "pending"


def test_python_and_sql_share_their_keys(driver: LifecycleDriver, connect: Connect) -> None:
    task = driver.submit("Open", input={"a": 1}, idempotency_key="k")
    assert submitted(connect, agent="Open", input={"a": 1}, idempotency_key="k") == task
    task = driver.submit("Open", idempotency_key="without input")
    assert submitted(connect, agent="Open", idempotency_key="without input") == task


# ------------------------------------------------------------------------------------------ stored refusals


@pytest.mark.parametrize("agent_name", [None, "A", "x" * 100_000])
@pytest.mark.parametrize("key", ["k", "x" * 100_000])
def test_a_stored_refusal_is_one_failed_task(driver: LifecycleDriver, agent_name: str | None, key: str) -> None:
    refuse = 'SELECT minion_refuse(:agent, :key, \'{"type": "invalid_input", "message": "no"}\', \'celery:x\')'
    first, again = (driver.sql(refuse, agent=agent_name, key=key) for _ in range(2))
    assert first == again
    row = driver.row(first)
    assert (row["state"], row["error"]["message"]) == ("failed", "no")


# ------------------------------------------------------------------------------------------------------ rights


@pytest.fixture
def stranger(driver: LifecycleDriver, connect: Connect) -> Iterator[psycopg.Connection[Any]]:
    """A connection of a role that may execute `minion_submit` and nothing else."""
    with connect() as owner:
        owner.execute("DROP ROLE IF EXISTS shop")
        owner.execute("CREATE ROLE shop")
        owner.execute("GRANT EXECUTE ON FUNCTION minion_submit TO shop")
    try:
        with connect() as connection:
            connection.execute("SET SESSION AUTHORIZATION shop")
            yield connection
            connection.rollback()
    finally:
        with connect() as owner:
            owner.execute("DROP OWNED BY shop")
            owner.execute("DROP ROLE shop")


def test_execute_alone_permits_submitting(stranger: psycopg.Connection[Any], driver: LifecycleDriver) -> None:
    task = submit(stranger, agent="Open", input={"x": 1})
    stranger.commit()
    assert (driver.row(task)["input"], driver.row(task)["submitted_by"]) == ({"x": 1}, "sql:shop")


@pytest.mark.parametrize("table", ["tasks", "task_status", "task_overview", "secrets", "agent_versions", "steps"])
def test_execute_grant_permits_no_reading(stranger: psycopg.Connection[Any], table: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        stranger.execute(f"SELECT * FROM {table}")  # type: ignore[arg-type]


def test_callers_choose_neither_search_path_nor_limits(
    stranger: psycopg.Connection[Any], driver: LifecycleDriver
) -> None:
    stranger.execute("CREATE TEMPORARY TABLE agents (id int)")
    stranger.execute("SET search_path = pg_temp, public")
    stranger.execute("SET minion.max_input_bytes = '100000000'")
    task = stranger.execute("SELECT public.minion_submit('Open', '{}')").fetchone()
    assert task is not None
    with pytest.raises(psycopg.DatabaseError, match="at most 1048576"):
        submit(stranger, agent="Open", input={"x": "y" * (2 << 20)})


def test_no_role_may_submit_until_it_is_granted(stranger: psycopg.Connection[Any], connect: Connect) -> None:
    with connect() as owner:
        owner.execute("REVOKE EXECUTE ON FUNCTION minion_submit FROM shop")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        submit(stranger, agent="Open")
