"""The author's order of keys, from every entry point to what models and readers see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from minions import testing
from minions.testing import MessagesApi, tool_use
from orchestrator.explain import explain
from orchestrator.replay import replay
from orchestrator.replay_from import Edit, replay_from
from orchestrator.retention.retention import prune
from orchestrator.schedules import store
from orchestrator.task_events import read_news
from orchestrator.webhooks.messages import of_tasks
from shared.contracts.key_order import as_in_jsonb, order_of, ordered
from shared.contracts.strict_json import digest
from shared.database.connections import get_engine, transaction
from shared.definitions.function_store import FunctionStore
from shared.definitions.store import DefinitionStore
from shared.settings import Settings
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.agents.conftest import plain
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.definitions import function_definition
from tests.support.lifecycle_driver import LifecycleDriver
from workers import minion

JUDGED: dict[str, Any] = {"reasoning": "because", "verdict": "yes", "score": 3}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string", "description": "First."},
        "verdict": {"description": "Second.", "type": "string"},
        "score": {"type": "integer"},
    },
    "required": ["reasoning", "verdict", "score"],
}


def same(value: Any, wanted: Any) -> None:
    """The values are equal, and so is the order of their keys."""
    assert json.dumps(value) == json.dumps(wanted)


def judge(name: str = "Judge", **fields: Any) -> dict[str, Any]:
    """An agent with a model, which may call `act`."""
    config = {"capabilities": ["work"], "retry_backoff": 0.01}
    return {"kind": "agent", "name": name, "model": "claude-sonnet-5-5", "tools": ["act"], "config": config, **fields}


# ------------------------------------------------------------------------------------------------- definitions


def numbers(database: Engine, table: str) -> list[int]:
    with database.connect() as connection:
        return list(connection.scalars(text(f"SELECT number FROM {table} ORDER BY number")))


def test_a_model_sees_schemas_in_their_authors_order(
    define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define({**ACT, "input_schema": SCHEMA}, judge(output_schema=SCHEMA))
    messages_api.script = [testing.text(json.dumps(JUDGED))]
    task = tasks.submit("Judge", "Hello")
    inline_worker.run_all()
    [request] = messages_api.requests
    same(request["tools"][0]["input_schema"], SCHEMA)
    assert json.dumps(SCHEMA) in request["system"][0]["text"]
    same(tasks.get(task)["output"], JUDGED)


def test_a_tool_has_the_order_of_its_function(
    define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    code = "def rate(reasoning, verdict, score):\n    return {'verdict': verdict, 'score': score, 'a': 1}\n"
    define(
        {"kind": "function", "name": "rate", "code": code, "input_schema": SCHEMA},
        {"kind": "tool", "name": "act", "type": "function", "function": "rate"},
        judge(),
    )
    messages_api.script = [tool_use(("act", JUDGED)), testing.text("Done.")]
    task = tasks.submit("Judge", "Hello")
    inline_worker.run_all()
    same(messages_api.requests[0]["tools"][0]["input_schema"], SCHEMA)
    _, asked, result = messages_api.requests[1]["messages"]
    same(asked["content"][-1]["input"], JUDGED)
    assert result["content"][0]["content"] == '{"verdict": "yes", "score": 3, "a": 1}'
    call = tasks.steps(task)[1]
    same([call["input"]["arguments"], call["output"]], [JUDGED, {"verdict": "yes", "score": 3, "a": 1}])


@pytest.mark.parametrize("kind", ["function", "tool", "agent"])
def test_another_order_is_another_version(database: Engine, define: Define, kind: str) -> None:
    made: dict[str, dict[str, Any]] = {
        "function": {"kind": "function", "name": "f", "code": "def f(**given):\n    return given\n"},
        "tool": {**ACT},
        "agent": {"kind": "agent", "name": "A", "type": "function", "tool": "act"},
    }
    if kind == "agent":
        define(ACT)
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    first, second = ({**made[kind], "input_schema": schema} for schema in (SCHEMA, turned))
    assert [change.action for change in define(first)] == ["created"]
    assert [change.action for change in define(first)] == ["unchanged"]
    assert [(change.action, change.version) for change in define(second)] == [("changed", 2)]
    assert [(change.action, change.version) for change in define(first)] == [("changed", 1)]
    with Session(database) as session:
        [stored] = [one for one in DefinitionStore(session, lambda function: None).export() if one.kind == kind]
        same(stored.input_schema, SCHEMA)
    assert numbers(database, f"{kind}_versions") == [1, 2]


def test_versions_without_an_order_get_it_by_the_next_apply(database: Engine, define: Define) -> None:
    define({**ACT, "input_schema": as_in_jsonb(SCHEMA)})
    assert [change.version for change in define({**ACT, "input_schema": SCHEMA})] == [2]


def test_an_order_alone_does_not_undo_a_rollback(database: Engine, define: Define) -> None:
    old = {"kind": "agent", "name": "A", "input_schema": {"type": "object"}}
    new = {"kind": "agent", "name": "A", "input_schema": as_in_jsonb(SCHEMA)}
    define(old)
    define(new)
    with database.begin() as connection:
        connection.execute(
            text(
                "UPDATE agents SET status = 'rolled_back', "
                "active_version_id = (SELECT id FROM agent_versions WHERE number = 1)"
            )
        )
    assert [change.action for change in define({**new, "input_schema": SCHEMA})] == ["unchanged"]


def test_a_function_is_verified_in_any_order(database: Engine, define: Define) -> None:
    define({"kind": "function", "name": "f", "code": "def f(**given):\n    return given\n", "input_schema": SCHEMA})
    with Session(database) as session:
        stored = FunctionStore(session).get("f")
        same(stored.definition.input_schema, SCHEMA)
        # Minions of release 0.2 do not know the order.
        content = session.scalar(text("SELECT definition FROM function_versions"))
        assert digest({"name": "f", "content": content, "resolved": {}}) == stored.checksum


# ------------------------------------------------------------------------------------------------- tasks

INPUTS = [
    {"answer": JUDGED},
    {"answer": [JUDGED, {**SCHEMA, "score": 1}]},
    {"answer": {**JUDGED, "long": "x" * 70_000}},
]


@pytest.mark.parametrize("value", INPUTS)
def test_input_steps_and_output_keep_their_order(
    database: Engine, tasks: Tasks, inline_worker: InlineWorker, act: Any, value: Any
) -> None:
    act("Act")
    task = tasks.submit("Act", value)
    inline_worker.run_all()
    found = tasks.get(task)
    same([found["input"], found["output"]], [value, value["answer"]])
    [step] = tasks.steps(task)
    same([step["input"]["arguments"], step["output"]], [value, value["answer"]])


def test_a_key_of_idempotency_does_not_depend_on_order(tasks: Tasks, act: Any) -> None:
    act("Act")
    first = tasks.submit("Act", JUDGED, idempotency_key="k")
    assert tasks.submit("Act", as_in_jsonb(JUDGED), idempotency_key="k") == first


def test_sub_tasks_and_replays_keep_the_order(
    database: Engine, define: Define, tasks: Tasks, inline_worker: InlineWorker, act: Any
) -> None:
    act("Act")
    define(
        {
            "kind": "agent",
            "name": "Chain",
            "type": "function",
            "relations": [{"agent": "Act"}, {"agent": "Act"}],
            "config": {"capabilities": ["work"]},
        }
    )
    value = {"answer": {"do": "answer", "answer": JUDGED}}
    task = tasks.submit("Chain", value)
    inline_worker.run_all()
    same([child["input"] for child in tasks.children(task)], [value, value["answer"]])
    same(tasks.get(task)["output"], JUDGED)
    edited = {"do": "answer", "answer": {"z": 1, "yy": 2, "a": 3}}
    with transaction() as connection:
        again = replay(connection, task, pinned=True, submitted_by="test").task_id
    continued = replay_from(get_engine(), task, 2, submitted_by="test")
    changed = replay_from(get_engine(), task, 1, edit=Edit(edited), submitted_by="test")
    inline_worker.run_all()
    same(tasks.get(again)["input"], value)
    same([tasks.get(each)["output"] for each in (again, continued, changed)], [JUDGED, JUDGED, edited["answer"]])
    same(tasks.steps(continued)[0]["output"]["output"], value["answer"])


def test_everything_that_reads_a_task_has_the_order(
    database: Engine, settings: Settings, tasks: Tasks, inline_worker: InlineWorker, act: Any, tmp_path: Path
) -> None:
    act("Act")
    task = tasks.submit("Act", {"answer": JUDGED})
    inline_worker.run_all()
    with database.begin() as connection:
        [news] = read_news(connection, [(task, 0)])
        same([event.data["output"] for event in news.events if "output" in event.data], [JUDGED, JUDGED])
        same(json.loads(of_tasks(connection, [task])[task])["data"]["output"], JUDGED)
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("UPDATE task_outcomes SET finished_at = now() - interval '1000 days'"))
    kept = settings.model_copy(update={"retention_export": tmp_path})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.retention.retention.first_id_at", lambda moment: UUID(int=(1 << 128) - 1))
        list(prune(database, kept))
    [line] = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    same([line["task"]["input"], line["task"]["output"]], [{"answer": JUDGED}, JUDGED])
    same([line["steps"][0]["input"]["arguments"], line["steps"][0]["output"]], [{"answer": JUDGED}, JUDGED])
    assert not [name for record in (line["task"], *line["steps"]) for name in record if name.endswith("_order")]


def test_approvals_and_signals_keep_the_order(
    database: Engine, define: Define, tasks: Tasks, inline_worker: InlineWorker, act: Any
) -> None:
    act("Act", config={"approval": True})
    value = {"do": "answer", "answer": {"$wait": {"signal": "paid"}}}
    task = tasks.submit("Act", value)

    def run() -> None:
        for message in inline_worker.dispatch():
            minion.run(message.task_id, message.claim, inline_worker.id)

    run()
    with transaction() as connection:
        why = explain(connection, task, lease=3600.0)
        same(why.facts["proposed"], value)
        decided = lifecycle.decide(connection, task, "approve", who="test", step=1)
        same(decided.value, value)
    run()
    with transaction() as connection:
        lifecycle.signal(connection, task, "paid", JUDGED)
    run()
    same(tasks.get(task)["output"]["payload"], JUDGED)
    changed = {"do": "answer", "answer": JUDGED}
    task = tasks.submit("Act", value)
    run()
    with transaction() as connection:
        same(lifecycle.decide(connection, task, "approve", who="test", step=1, value=changed).value, changed)
    run()
    same(tasks.get(task)["output"], JUDGED)


def test_schedules_keep_the_order(database: Engine, act: Any) -> None:
    act("Act")
    request = {"input": JUDGED, "agent": "Act"}
    definition = store.ScheduleDefinition.parse({"name": "daily", "cron": "0 3 * * *", "request": request})
    with database.begin() as connection:
        same(store.create(connection, "default", definition)["request"], request)
        same(store.change(connection, "default", "daily", {"enabled": False})["request"], request)
        same(store.list_schedules(connection, "default", limit=5).items[0]["request"], request)
    [prepared] = store.prepare_run(database, "default", "daily")
    same(prepared["input"], JUDGED)


# ------------------------------------------------------------------------------------------------- the journal


def test_journal_read_back_gives_the_same_requests(
    database: Engine, define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define({**ACT, "effect": "idempotent", "input_schema": {"type": "object"}}, judge())
    call = tool_use(("act", {"do": "answer", "answer": {**JUDGED, "whole": 2.0}}))
    wait = tool_use(("act", {"do": "answer", "answer": {"$wait": {"seconds": 0.01}}}))
    messages_api.script = [call, wait, testing.text("Done.")]
    task = tasks.submit("Judge", {"verdict": 1, "a": 2})
    inline_worker.run_all()
    assert (tasks.get(task)["state"], len(tasks.executions(task))) == ("succeeded", 2)
    _, before, after = map(plain, messages_api.requests)
    same(after[: len(before)], before)
    assert '{\\"verdict\\": 1, \\"a\\": 2}' in json.dumps(before)


def test_step_hashes_equal_those_of_release_0_2(
    define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define({**ACT, "effect": "idempotent", "input_schema": {"type": "object"}}, judge())
    value = {"verdict": 1.0, "a": 2}
    messages_api.script = [tool_use(("act", {"do": "answer", "answer": JUDGED})), testing.text("Done.")]
    task = tasks.submit("Judge", value)
    inline_worker.run_all()
    first, _, second = tasks.steps(task)
    asked = [{"role": "user", "content": '{"a": 2, "verdict": 1.0}'}]
    assert first["request_hash"] == digest(["model_call", "claude-sonnet-5-5", {"messages": asked}])
    same(first["input"]["messages"][0]["content"], json.dumps(value))
    [result] = second["input"]["messages"][0]["content"]
    assert result["content"] == json.dumps(JUDGED)
    result["content"] = json.dumps(JUDGED, sort_keys=True)
    asked = [{"role": "user", "content": [result]}]
    assert second["request_hash"] == digest(["model_call", "claude-sonnet-5-5", {"messages": asked}])


# ------------------------------------------------------------------------------------------------- SQL

NAMES = st.sampled_from(["a", "b", "cc", "é", "reasoning", "verdict"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(0, 3) | st.text('ab{}[]",', max_size=3),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(NAMES, parts, max_size=4),
    max_leaves=20,
)


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_sql_and_python_restore_the_same_order(database: Engine, value: Any) -> None:
    with database.connect() as connection:
        statement = text("SELECT CAST(v AS jsonb), minion_key_order(CAST(v AS json)) FROM CAST(:value AS text) AS v")
        stored, order = connection.execute(statement, {"value": json.dumps(value)}).one()
    same(stored, as_in_jsonb(value))
    same(ordered(stored, order), value)
    assert (order is None) == (order_of(value) is None)


def test_sql_callers_may_keep_the_order(database: Engine, tasks: Tasks, act: Any) -> None:
    act("Act")
    with database.begin() as connection:
        submitted = "SELECT minion_submit_json('Act', CAST(:input AS json), key => 'k', priority => 3)"
        task = connection.scalar(text(submitted), {"input": json.dumps(JUDGED)})
    found = tasks.get(task)
    same(found["input"], JUDGED)
    assert (found["key"], found["priority"]) == ("k", 3)
    with database.begin() as connection:
        empty = connection.scalar(text("SELECT minion_submit_json('Act', NULL)"))
    assert tasks.get(empty)["input"] == {}


def test_submitting_by_sql_needs_a_grant(database: Engine) -> None:
    with database.connect() as connection:
        public = "SELECT has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc WHERE proname = :name"
        assert connection.scalar(text(public), {"name": "minion_submit_json"}) is False


def test_function_with_reordered_keys_stays_in_quarantine(define: Define, database: Engine) -> None:
    """Its code is the same."""
    define(function_definition(input_schema={"type": "object", "properties": {"x": {}, "further": {}}}))
    driver = LifecycleDriver(database)
    driver.sql("UPDATE function_versions SET status = 'quarantined', status_reason = 'It is evil.'")
    define(function_definition(input_schema={"type": "object", "properties": {"further": {}, "x": {}}}))
    assert driver.sql("SELECT count(*) FROM function_versions") == 2
    assert driver.sql("SELECT DISTINCT status FROM function_versions") == "quarantined"
