"""Accepting tasks from Python: refusals, their texts, and idempotency keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from shared.contracts.requests import TaskRequest
from shared.contracts.strict_json import MAX_DEPTH
from shared.database.connections import get_engine
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
from shared.tasks.submission import prepare, prepare_each, submit_within
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver, concurrently

WITH_IMAGE = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}
SEARCH = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {"query": {"type": "string", "minLength": 2}, "limit": {"type": "integer", "minimum": 1}},
}


@pytest.fixture
def driver(database: Engine, define: Define) -> LifecycleDriver:
    define(
        NOOP,
        agent_definition("Open", "open"),
        agent_definition("Search", "search", "shared", input_schema=SEARCH),
        agent_definition("Other", "shared"),
        agent_definition("Gone", "gone"),
        {"kind": "agent", "name": "Model", "input_schema": SEARCH, "config": {"capabilities": ["talk"]}},
    )
    driver = LifecycleDriver(database)
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Gone'")
    driver.sql("UPDATE agents SET status = 'deprecated' WHERE name = 'Other'")
    return driver


def accept(**fields: Any) -> Any:
    """A task as any Python caller submits it."""
    request = TaskRequest.parse(fields)
    with get_engine().begin() as connection:
        return submit_within(connection, [request], submitted_by="test")[0]


def refused(error: type[MinionError], **fields: Any) -> MinionError:
    """The refusal; nothing was stored."""
    with pytest.raises(error) as caught:
        accept(**fields)
    assert type(caught.value) is error
    with get_engine().connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM tasks").scalar() == 0
    return caught.value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# ------------------------------------------------------------------------------------------------ who does it


def test_an_agent_is_pinned_when_the_task_is_accepted(driver: LifecycleDriver, define: Define) -> None:
    task = driver.submit("Search", input={"query": "boats"})
    define(agent_definition("Search", "search", "shared", description="new"))
    row = driver.row(task)
    assert (row["agent"], row["agent_version"], row["capability"], row["state"]) == ("Search", 1, "search", "pending")
    assert driver.row(driver.submit("Search"))["agent_version"] == 2


@pytest.mark.parametrize("name", ["Nobody", "search", "", "Search ", "Se%", "ü", "'; DROP TABLE tasks; --", "x" * 200])
def test_an_unknown_agent_is_named(driver: LifecycleDriver, name: str) -> None:
    error = refused(UnknownAgent, agent=name)
    assert "There is no agent named" in error.message
    assert name[:50].replace("'", "''") in error.message


@pytest.mark.parametrize("name", ["nothing", "Search", "", "SEARCH", "x" * 200])
def test_an_unknown_capability_is_named(driver: LifecycleDriver, name: str) -> None:
    assert "No agent offers the capability" in refused(UnknownCapability, capability=name).message


def test_a_capability_that_one_agent_offers_names_it(driver: LifecycleDriver) -> None:
    assert driver.row(accept(capability="open").task_id)["agent"] == "Open"


def test_ambiguous_capability_is_refused_with_agent_names(driver: LifecycleDriver) -> None:
    error = refused(AmbiguousRoute, capability="shared", input={"query": "boats"})
    assert error.message == "Several agents offer the capability 'shared': Other, Search. Name the agent."


def test_the_agent_and_one_of_its_capabilities_name_the_queue(driver: LifecycleDriver) -> None:
    task = accept(agent="Search", capability="shared", input={"query": "boats"}).task_id
    assert driver.row(task)["capability"] == "shared"
    with pytest.raises(
        UnknownCapability, match="'Search' does not offer the capability 'open'; it offers search, shared"
    ):
        accept(agent="Search", capability="open", input={"query": "boats"})


def test_disabled_agent_accepts_no_task(driver: LifecycleDriver) -> None:
    assert "'Gone' is disabled" in refused(Conflict, agent="Gone").message
    assert refused(UnknownCapability, capability="gone")


def test_a_deprecated_agent_still_accepts(driver: LifecycleDriver) -> None:
    assert accept(agent="Other").created


def test_request_must_name_agent_or_capability(driver: LifecycleDriver) -> None:
    assert "Name an agent or a capability" in refused(InvalidInput).message


def test_other_namespaces_have_other_agents(driver: LifecycleDriver) -> None:
    refused(UnknownAgent, agent="Open", namespace="other")


# ------------------------------------------------------------------------------------------------- the input


@pytest.mark.parametrize("value", [None, False, 0, -0.5, "", "ü\n🙂", [], {}, {"": {"a b": [None]}}, 10**299, 1e-300])
def test_every_json_value_is_stored(driver: LifecycleDriver, value: Any) -> None:
    task = accept(agent="Open", input=value).task_id
    driver.dispatch()
    claimed = driver.row(task)["input"]
    assert (claimed, type(claimed)) == (value, type(value))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4)
    ),
    max_leaves=20,
)


@hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values)
def test_accepted_input_is_returned_equal(driver: LifecycleDriver, value: Any) -> None:
    assert driver.row(accept(agent="Open", input=value).task_id)["input"] == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "nan is not a JSON number at $.a"),
        (float("inf"), "inf is not a JSON number at $.a"),
        ("a\0b", "the character U+0000, which PostgreSQL cannot store, at $.a"),
        ("\ud800", "a lone surrogate"),
        ({"a\0": 1}, "a key with the character U+0000"),
        ({1: 2}, "a key that is not text (int) at $.a"),
        ({True: 2}, "a key that is not text (bool) at $.a"),
        (10**400, "a number of more than 300 digits at $.a"),
        (-(10**400), "a number of more than 300 digits"),
        (1.5e300, "a number of more than 300 digits"),
        (nested(MAX_DEPTH), "nesting deeper than 100 levels"),
        (nested(100_000), "nesting deeper than 100 levels"),
        (b"x", "a bytes is not a JSON value"),
        ({1, 2}, "a set is not a JSON value"),
        (object(), "a object is not a JSON value"),
        (datetime.now(UTC), "a datetime is not a JSON value"),
        (1j, "a complex is not a JSON value"),
    ],
)
def test_input_that_is_not_strict_json_is_refused_with_place(driver: LifecycleDriver, value: Any, words: str) -> None:
    assert words in refused(InvalidInput, agent="Open", input={"a": value}).message


def test_a_value_that_holds_itself_is_refused(driver: LifecycleDriver) -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "nesting deeper" in refused(InvalidInput, agent="Open", input=loop).message


def test_deepest_nesting_of_python_fits_the_database(driver: LifecycleDriver) -> None:
    assert accept(agent="Open", input=nested(MAX_DEPTH)).created


@pytest.mark.parametrize("value", ["x" * (20 << 20), ["x" * 1000] * 20_000, {"ü" * (1 << 19): 1}])
def test_a_large_input_is_refused_with_its_size(driver: LifecycleDriver, value: Any) -> None:
    error = refused(TooLarge, agent="Open", input=value)
    assert "at most 1,048,576 are accepted" in error.message
    assert error.detail["size"] == len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def test_large_messages_and_labels_are_refused(driver: LifecycleDriver) -> None:
    refused(TooLarge, agent="Open", messages=["x" * (2 << 20)])
    refused(InvalidInput, agent="Open", labels={"a": "x" * (2 << 20)})


def test_all_violations_of_the_schema_are_named(driver: LifecycleDriver) -> None:
    error = refused(InvalidInput, agent="Search", input={"query": "x", "limit": 0, "colour": "red"})
    assert error.message.startswith("The input of 'Search' does not match its schema: ")
    assert [fault["path"] for fault in error.detail["violations"]] == ["$", "$.limit", "$.query"]
    for words in ("'colour' was unexpected", "0 is less than the minimum of 1", "'x' is too short"):
        assert words in error.message


@pytest.mark.parametrize("value", [None, [], "text", 5, {}, {"query": None}, {"query": 5}, {"query": ["boats"]}])
def test_a_wrong_type_is_refused(driver: LifecycleDriver, value: Any) -> None:
    refused(InvalidInput, agent="Search", input=value)


# ----------------------------------------------------------------------------------------------- the fields


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"agent": 5}, "agent: Input must be a valid string"),
        ({"agent": "x" * 201}, "agent: String must have at most 200"),
        ({"priority": True}, "priority: Input must be a valid integer"),
        ({"priority": "5"}, "priority: Input must be a valid integer"),
        ({"priority": 5.5}, "priority: Input must be a valid integer"),
        ({"priority": -101}, "priority: Input must be greater than or equal to -100"),
        ({"priority": 10**30}, "priority: Input must be less than or equal to 100"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at: Input must have timezone info"),
        ({"run_at": "2030-01-01T00:00:00"}, "run_at: Input must have timezone info"),
        ({"run_at": "tomorrow"}, "run_at: a time must be written like"),
        ({"run_at": 1893456000}, "run_at: a time must be written like"),
        ({"run_at": True}, "run_at: a time must be written like"),
        ({"run_at": "2030-02-30T00:00:00Z"}, "run_at: "),
        ({"run_at": "2030-01-02T00:00:00Z", "deadline": "2030-01-01T00:00:00Z"}, "run_at must be before deadline"),
        ({"run_at": "2030-01-01T00:00:00Z", "deadline": "2030-01-01T00:00:00Z"}, "run_at must be before deadline"),
        ({"unique_while": "pending"}, "unique_while must come with unique_key"),
        ({"deadline": "0001-01-01T00:00:00+14:00"}, "deadline: a time must be in the years 1 to 9999 in UTC"),
        ({"deadline": "9999-12-31T23:59:59-12:00"}, "deadline: a time must be in the years 1 to 9999 in UTC"),
        ({"run_at": "9999-12-31T23:59:59-12:00"}, "run_at: a time must be in the years 1 to 9999 in UTC"),
        ({"deadline": "1969-12-31T23:59:59Z"}, "deadline must be a time between the years 1970 and 9999"),
        ({"run_at": "9999-12-31T23:59:59Z"}, "run_at must be a time between the years 1970 and 9999"),
        ({"labels": ["a"]}, "labels: Input must be a valid dictionary"),
        ({"labels": {"a": 1}}, "labels.a: Input must be a valid string"),
        ({"labels": {1: "a"}}, "labels.1"),
        ({"labels": {"": "a"}}, "at least 1 character"),
        ({"labels": {str(n): "" for n in range(65)}}, "labels: Dictionary must have at most 64"),
        ({"labels": {"a": "b\0"}}, "U+0000"),
        ({"idempotency_key": ""}, "idempotency_key: String must have at least 1"),
        ({"idempotency_key": "x" * 256}, "idempotency_key: String must have at most 255"),
        ({"idempotency_key": "\0"}, "U+0000"),
        ({"conversation_id": 5}, "conversation_id: Input must be a valid string"),
        ({"conversation_id": "a\0"}, "U+0000"),
        ({"key": ""}, "key: String must have at least 1"),
        ({"namespace": ""}, "namespace: String must have at least 1"),
        ({"namespace": None}, "namespace: Input must be a valid string"),
        ({"traceparent": "00-x"}, "traceparent: String must match"),
        ({"messages": "hello"}, "messages: Input must be a valid list"),
        ({"messages": []}, "`messages` is an empty list"),
        ({"messages": ["x"] * 1001}, "messages: List must have at most 1000"),
        ({"messages": [5]}, "A message must have a role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "'king'"),
        ({"messages": [{"role": "user", "content": 5}]}, "A message must have a role"),
        ({"messages": [{"role": "user", "content": [{"text": 5}]}]}, "messages[0].content[0].text: it must be text"),
        (
            {"messages": ["x", WITH_IMAGE]},
            "messages[1].content[1].source: the source of a block of type 'image' must have one of the types base64",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]: messages of role 'tool'"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "U+0000"),
        ({"messages": [None]}, "A message must have a role"),
    ],
)
def test_a_wrong_field_is_named(driver: LifecycleDriver, fields: dict[str, Any], words: str) -> None:
    assert words in refused(InvalidInput, **{"agent": "Open", **fields}).message


def test_thousands_of_wrong_fields_give_a_short_error(driver: LifecycleDriver) -> None:
    error = refused(InvalidInput, agent="Open", **{"x\0" * 50_000 + str(n): n for n in range(50)})
    assert len(error.message) < 10_000
    assert "\0" not in error.message
    assert "and 30 more" in error.message


def test_fields_are_stored(driver: LifecycleDriver) -> None:
    east = timezone(timedelta(hours=9))
    later = datetime(2030, 1, 1, 12, tzinfo=east)
    given = {
        "key": "tenant",
        "labels": {"team": "ü"},
        "priority": -100,
        "conversation_id": "c",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    row = driver.row(accept(agent="Open", run_at=later, deadline=later + timedelta(days=1), **given).task_id)
    assert {name: row[name] for name in given} == given
    assert (row["state"], row["due_at"], row["deadline"]) == ("scheduled", later, later + timedelta(days=1))
    assert (row["submitted_by"], row["input"]) == ("test", {})


def test_a_time_that_has_passed_is_now(driver: LifecycleDriver) -> None:
    row = driver.row(accept(agent="Open", run_at=datetime.now(UTC) - timedelta(days=1)).task_id)
    assert (row["state"], row["due_at"]) == ("pending", None)


# --------------------------------------------------------------------------------------------------- messages


class LangChainMessage:
    """LangChain's shape; pydantic cannot serialise it."""

    def __init__(self, kind: str, content: Any) -> None:
        self.type = kind
        self.content = content


def test_messages_of_langchains_shape_are_accepted(driver: LifecycleDriver) -> None:
    messages = [LangChainMessage("human", "red boats"), LangChainMessage("ai", [{"type": "text", "text": "ok"}])]
    row = driver.row(accept(agent="Search", messages=messages).task_id)
    assert row["messages"] == [{"role": "user", "content": "red boats"}, {"role": "assistant", "content": "ok"}]
    assert row["input"] is None


def test_message_unfit_as_input_reports_the_schema(driver: LifecycleDriver) -> None:
    assert 'requires ["query"]' in refused(InvalidInput, agent="Search", messages=["x"]).message


# ------------------------------------------------------------------------------------------------ idempotency


def test_same_key_and_payload_return_the_same_task(driver: LifecycleDriver) -> None:
    first = accept(agent="Open", input={"a": 1.0, "b": [1]}, idempotency_key="k")
    again = accept(agent="Open", input={"b": [1], "a": 1}, idempotency_key="k")
    assert (first.created, again.created, first.task_id) == (True, False, again.task_id)


@pytest.mark.parametrize(
    "other",
    [
        {"input": {"a": 2}},
        {"input": None},
        {"agent": "Other"},
        {"capability": "open"},
        {"conversation_id": "c"},
        {"key": "tenant"},
        {"messages": ["hello"]},
    ],
)
def test_another_payload_under_the_same_key_is_refused(driver: LifecycleDriver, other: dict[str, Any]) -> None:
    first = accept(agent="Open", input={"a": 1}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=f"'k' was used before with another payload .task {first.task_id}"):
        accept(**{"agent": "Open", "input": {"a": 1}, "idempotency_key": "k", **other})
    assert driver.sql("SELECT count(*) FROM tasks") == 1


@pytest.mark.parametrize("since", ["disabled", "removed", "another schema", "another capability"])
def test_key_returns_its_task_after_changes_of_the_agent(driver: LifecycleDriver, define: Define, since: str) -> None:
    """The answer was lost, and the caller asks again."""
    asked = {"agent": "Open", "capability": "open", "input": {"a": 1}, "idempotency_key": "k"}
    first = accept(**asked)
    if since == "disabled":
        driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Open'")
    elif since == "removed":
        driver.sql("UPDATE agents SET name = 'Closed' WHERE name = 'Open'")
    else:
        define(agent_definition("Open", *(["open"] if since == "another schema" else ["closed"]), input_schema=SEARCH))
    again = accept(**asked)
    assert (again.task_id, again.created) == (first.task_id, False)
    with pytest.raises(IdempotencyConflict):
        accept(**{**asked, "input": {"a": 2}})
    with pytest.raises(MinionError) as caught:
        accept(**{**asked, "idempotency_key": "other"})
    assert not isinstance(caught.value, IdempotencyConflict)
    with pytest.raises(UnknownAgent):
        accept(**{**asked, "namespace": "other"})


def test_a_key_belongs_to_its_namespace(driver: LifecycleDriver, database: Engine) -> None:
    accept(agent="Open", idempotency_key="k")
    with pytest.raises(UnknownAgent):
        accept(agent="Open", idempotency_key="k", namespace="other")


def test_a_refused_request_does_not_use_up_its_key(driver: LifecycleDriver) -> None:
    refused(InvalidInput, agent="Search", input={}, idempotency_key="k")
    assert accept(agent="Search", input={"query": "boats"}, idempotency_key="k").created


def test_many_threads_with_one_key_make_one_task(driver: LifecycleDriver) -> None:
    accepted = concurrently(*[lambda: accept(agent="Open", input={"a": 1}, idempotency_key="k")] * 10)
    assert len({task.task_id for task in accepted}) == 1
    assert sum(task.created for task in accepted) == 1
    assert driver.sql("SELECT count(*) FROM tasks") == 1


def test_concurrent_submissions_of_one_key_create_one_task(driver: LifecycleDriver) -> None:
    def one(n: int) -> str:
        try:
            return str(accept(agent="Open", input={"a": n % 2}, idempotency_key="k").task_id)
        except IdempotencyConflict:
            return "conflict"

    answers = concurrently(*[lambda n=n: one(n) for n in range(10)])
    assert answers.count("conflict") == 5
    assert len(set(answers)) == 2


# ----------------------------------------------------------------------------------------------------- many


def test_of_many_all_are_accepted_or_none(driver: LifecycleDriver, database: Engine) -> None:
    requests = [TaskRequest(agent="Open", input=n) for n in range(500)]
    with database.begin() as connection:
        accepted = submit_within(connection, requests, submitted_by="test")
    assert [driver.row(task.task_id)["input"] for task in accepted[::100]] == [0, 100, 200, 300, 400]
    assert [task.task_id for task in accepted] == sorted(task.task_id for task in accepted)


@pytest.mark.parametrize(
    "wrong", [{"agent": "Nobody"}, {"agent": "Search", "input": {}}, {"agent": "Open", "input": "\0"}]
)
def test_one_wrong_request_is_named_by_its_index(
    driver: LifecycleDriver, database: Engine, wrong: dict[str, Any]
) -> None:
    requests = [TaskRequest(agent="Open"), TaskRequest(**wrong), TaskRequest(agent="Open")]
    with pytest.raises(MinionError, match=r"tasks\[1\]: ") as caught, database.begin() as connection:
        submit_within(connection, requests, submitted_by="test")
    assert caught.value.detail["index"] == 1
    assert driver.sql("SELECT count(*) FROM tasks") == 0


def test_accepted_keys_in_a_batch_are_not_checked_again(
    driver: LifecycleDriver, database: Engine, define: Define
) -> None:
    requests = [TaskRequest(agent="Open", input={"n": n}, idempotency_key=f"k{n}") for n in range(3)]
    with database.begin() as connection:
        first = submit_within(connection, requests, submitted_by="test")
    define(agent_definition("Open", "open", input_schema=SEARCH))
    with database.begin() as connection:
        again = submit_within(connection, requests, submitted_by="test")
    assert [task.task_id for task in again] == [task.task_id for task in first]
    new = TaskRequest(agent="Open", input={"n": 3}, idempotency_key="k3")
    with pytest.raises(InvalidInput, match=r"tasks\[3\]: "):
        prepare(database, [*requests, new], submitted_by="test")


def test_unstorable_key_in_a_batch_is_named_by_index(driver: LifecycleDriver, database: Engine) -> None:
    requests = [TaskRequest(agent="Open", idempotency_key=key) for key in ("a", "b\0", "c")]
    with pytest.raises(InvalidInput, match=r"tasks\[1\]: .*U\+0000"):
        prepare(database, requests, submitted_by="test")


def test_rolled_back_transaction_leaves_no_task(driver: LifecycleDriver, database: Engine) -> None:
    with database.connect() as connection:
        submit_within(connection, [TaskRequest(agent="Open", idempotency_key="k")], submitted_by="test")
        connection.rollback()
    assert driver.sql("SELECT count(*) FROM tasks") == 0
    assert accept(agent="Open", input=1, idempotency_key="k").created


def test_agent_disabled_later_still_runs_accepted_tasks(driver: LifecycleDriver) -> None:
    task = accept(agent="Open").task_id
    driver.sql("UPDATE agents SET status = 'disabled'")
    serving = LifecycleDriver(driver.engine, "open")
    assert [message.task_id for message in serving.dispatch()] == [task]
    assert serving.claim(task) is not None
    assert serving.finish(task) == "succeeded"


def test_a_schema_that_changed_in_between_is_checked_again(
    driver: LifecycleDriver, database: Engine, define: Define
) -> None:
    """Prepared against one version, accepted under the next: the dispatcher checks it before it runs."""
    prepared = prepare(database, [TaskRequest(agent="Open", input={})], submitted_by="test")
    define(agent_definition("Open", "open", input_schema=SEARCH))
    task = driver.call(lifecycle.accept, prepared)[0].task_id
    driver.dispatch()
    assert (driver.state(task), driver.row(task)["error"]["type"]) == ("failed", "invalid_input")


def test_refused_request_does_not_affect_its_transaction(database: Engine, define: Define) -> None:
    """One has neither agent nor messages; the other one has messages, and is routed by them."""
    define(NOOP, agent_definition("Open", description="Opens doors"))
    requests = [
        TaskRequest(input={"a": 1}),
        TaskRequest(input={"a": 1}, messages=[{"role": "user", "content": "open the doors"}]),
    ]
    refused, prepared = prepare_each(database, requests, submitted_by=["one", "other"])
    assert isinstance(refused, MinionError)
    assert isinstance(prepared, dict), prepared
