"""The memory tool: stores per conversation, tenant or agent, versions, and tasks that share a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi, tool_use
from shared.contracts.server_tools import Memory
from shared.database.connections import transaction
from shared.memories import commands, store
from shared.memories.store import Address, Origin
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import InlineWorker, Tasks

NOTE = "/memories/note.md"
ANN = Address("default", "notes", "tenant", "ann", "ann")


def create(content: str, path: str = NOTE) -> tuple[str, dict[str, Any]]:
    return "memory", {"command": "create", "path": path, "file_text": content}


def view(path: str = "/memories") -> tuple[str, dict[str, Any]]:
    return "memory", {"command": "view", "path": path}


@pytest.fixture
def remember(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, define: Define, define_agent: DefineAgent
) -> Any:
    """Runs a task whose model makes one turn of memory commands; returns the results that the model received."""

    def run(*calls: tuple[str, dict[str, Any]], per: str = "tenant", agent: str = "Agent", **fields: Any) -> list[Any]:
        define({"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": per}})
        define_agent(name=agent, tools=["notes"])
        messages_api.requests.clear()
        messages_api.script = [tool_use(*calls), testing.text("Done.")]
        task = tasks.submit(agent, "Hello", **fields)
        inline_worker.run_all()
        assert tasks.get(task)["state"] == "succeeded", tasks.get(task)["error"]
        results = plain(messages_api.requests[-1])[-1]["content"]
        return [(block["content"], block.get("is_error", False)) for block in results]

    return run


def stores(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return store.stores(connection, "default", limit=100)


def test_commands_of_one_turn_run_in_their_order(remember: Any, database: Engine) -> None:
    edit = ("memory", {"command": "str_replace", "path": NOTE, "old_str": "tea", "new_str": "coffee"})
    results = remember(view(), create("Likes tea.\n"), edit, view(NOTE), key="ann")
    assert [failed for _, failed in results] == [False] * 4
    assert results[1][0] == f"File created successfully at: {NOTE}"
    assert results[3][0].splitlines()[1] == "     1\tLikes coffee."
    [found] = stores(database)
    assert (found["tool"], found["per"], found["owner"], found["changes"], found["bytes"]) == (
        "notes", "tenant", "ann", 2, len("Likes coffee.\n"),
    )  # fmt: skip
    with database.connect() as connection:
        changes = store.changes(connection, found["id"])
        assert [(change["command"], change["step"], change["made_by"]) for change in changes] == [
            ("str_replace", 4, "Agent"),
            ("create", 3, "Agent"),
        ]
        assert store.read(connection, found["id"], NOTE, 1) == "Likes tea.\n"
        assert store.read(connection, found["id"], NOTE) == "Likes coffee.\n"


def test_refused_command_is_an_error_that_the_model_reads(remember: Any) -> None:
    [(said, failed)] = remember(view("/memories/../etc/passwd"), key="ann")
    assert failed
    assert said.startswith("Error: Invalid path /memories/../etc/passwd")


@pytest.mark.parametrize(
    ("per", "writer", "same", "other"),
    [
        ("tenant", {"key": "ann"}, {"key": "ann", "conversation_id": "9"}, {"key": "bob"}),
        (
            "conversation",
            {"conversation_id": "1", "key": "ann"},
            {"conversation_id": "1", "key": "ann"},
            {"conversation_id": "1", "key": "bob"},
        ),
        ("agent", {"key": "ann"}, {"key": "bob"}, {"agent": "Other"}),
    ],
)
def test_store_is_shared_only_by_its_owner(remember: Any, per: str, writer: Any, same: Any, other: Any) -> None:
    remember(create("Mine."), per=per, **writer)
    [(seen, _)] = remember(view(NOTE), per=per, **same)
    assert seen.endswith("Mine.")
    [(missing, failed)] = remember(view(NOTE), per=per, **other)
    assert (missing, failed) == (f"The path {NOTE} does not exist. Please provide a valid path.", True)


def test_namespaces_share_no_store(database: Engine) -> None:
    with transaction() as connection:
        connection.execute(store.OPEN, store._values(ANN))
        assert connection.scalar(store.FIND, {**store._values(ANN), "namespace": "other"}) is None


@pytest.mark.parametrize(("per", "lacks"), [("tenant", "has no tenant key"), ("conversation", "no conversation")])
def test_task_without_an_owner_has_no_memory(remember: Any, per: str, lacks: str) -> None:
    [(said, failed)] = remember(view(), per=per)
    assert (lacks in said, failed) == (True, True)


@pytest.fixture
def claimed(tasks: Tasks, act: Any, inline_worker: InlineWorker) -> list[tuple[UUID, int]]:
    """Six running tasks, each with its claim."""
    agent = act()
    for _ in range(6):
        tasks.submit(agent, {})
    messages = inline_worker.dispatch()
    with transaction() as connection:
        found = [lifecycle.claim(connection, each.task_id, each.claim, inline_worker.id) for each in messages]
    return [(UUID(row["id"]), row["claim"]) for row in found if row and "refused" not in row]


def change(fields: dict[str, Any], task: tuple[UUID, int], key: str) -> str | None:
    """Change Ann's store as a step of a task does."""
    with transaction() as connection:
        origin = Origin("Agent", task[0], 1, key)
        return store.change(connection, ANN, commands.checked(fields), Memory(per="tenant"), origin, task[1])


def test_change_is_made_once_when_its_step_runs_again(claimed: list[tuple[UUID, int]], database: Engine) -> None:
    insert = {"command": "insert", "path": NOTE, "insert_line": 0, "insert_text": "Again."}
    assert change(create("")[1], claimed[0], "first")
    assert change(insert, claimed[0], "second") == change(insert, claimed[0], "second")
    assert [found["changes"] for found in stores(database)] == [2]


def test_lost_claim_changes_nothing(claimed: list[tuple[UUID, int]], database: Engine) -> None:
    task, claim = claimed[0]
    assert change(create("")[1], (task, claim - 1), "first") is None
    assert stores(database) == []


def test_tasks_of_one_tenant_change_a_store_one_after_the_other(
    claimed: list[tuple[UUID, int]], database: Engine
) -> None:
    def add(number: int) -> str | None:
        line = {"command": "insert", "path": NOTE, "insert_line": 0, "insert_text": f"Line {number}"}
        return change(line, claimed[number % 6], f"line {number}")

    change(create("")[1], claimed[0], "first")
    with ThreadPoolExecutor(6) as threads:
        assert None not in [*threads.map(add, range(30))]
    [found] = stores(database)
    assert found["changes"] == 31
    with database.connect() as connection:
        content = store.read(connection, found["id"], NOTE) or ""
    assert sorted(content.splitlines()) == sorted(f"Line {number}" for number in range(30))


@pytest.mark.parametrize(("limit", "rounds"), [(500, [(1, 3)]), (1, [(1, 1), (0, 1), (0, 1), (0, 0)])])
def test_unused_stores_and_replaced_versions_are_pruned(
    remember: Any, database: Engine, limit: int, rounds: list[tuple[int, int]]
) -> None:
    edit = ("memory", {"command": "str_replace", "path": NOTE, "old_str": "1", "new_str": "2"})
    remember(
        create("1"),
        edit,
        create("gone", "/memories/x"),
        ("memory", {"command": "delete", "path": "/memories/x"}),
        key="ann",
    )
    remember(create("1"), key="bob")
    [ann] = [each for each in stores(database) if each["key"] == "ann"]
    age = text("UPDATE memory_changes SET at = at - interval '40 days'")
    unused = text("UPDATE memory_stores SET used_at = now() - interval '40 days' WHERE key = 'bob'")
    with transaction() as connection:
        connection.execute(age)
        connection.execute(unused)
        for expected in rounds:
            assert store.prune(connection, 30, limit) == expected
            assert [each["path"] for each in store.files(connection, ann["id"])] == [NOTE]
    [found] = stores(database)
    with database.connect() as connection:
        assert [each["path"] for each in store.files(connection, found["id"])] == [NOTE]
        assert store.read(connection, found["id"], NOTE) == "2"
        assert store.read(connection, found["id"], NOTE, 1) is None
