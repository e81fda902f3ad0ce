"""Erasure of a tenant's or a conversation's contents: nothing of them is left, and the audit log records it."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client
from orchestrator.observe.counting import catch_up
from orchestrator.retention import erasure, retention
from shared.memories import commands, store
from shared.memories.store import Address, Origin
from tests.conftest import Define
from tests.integration.api.conftest import Run, WithKey
from tests.integration.conftest import InlineWorker, Tasks

CHAIN = {
    "kind": "agent",
    "name": "Chain",
    "type": "function",
    "relations": [{"agent": "Act"}],
    "config": {"capabilities": ["work"]},
}
MARK = "contents of acme"
ALL = text(
    "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
)


def tables_with(database: Engine, mark: str) -> set[str]:
    """The tables in which a text is left."""
    with database.connect() as connection:
        names = connection.scalars(ALL).all()
        found = {
            name: connection.scalar(
                text(f"SELECT count(*) FROM {name} t WHERE t::text LIKE :mark"), {"mark": f"%{mark}%"}
            )
            for name in names
        }
    return {name for name, number in found.items() if number}


@pytest.fixture
def chain_of(define: Define, act: Any, tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """Runs tasks with a sub-task, whose inputs and outputs have the mark."""
    act()
    define(CHAIN)

    def run(number: int = 1, **fields: Any) -> list[str]:
        mark = fields.pop("mark", MARK)
        long = mark * 10_000
        ids = [
            str(tasks.submit("Chain", {"do": "answer", "answer": {"said": long}}, labels={"note": mark}, **fields))
            for _ in range(number)
        ]
        inline_worker.run_all()
        return ids

    return run


def test_nothing_of_a_tenant_is_left(client: Client, database: Engine, chain_of: Any) -> None:
    chain_of(3, key="acme")
    [other] = chain_of(key="other", mark="contents of other")
    remember(database, key="acme")
    assert {"tasks", "steps", "contents"} <= tables_with(database, MARK)
    erased = client.erase(tenant="acme")
    assert erased == {"trees": 3, "tasks": 6, "memories": 1, "left": [], "schedules": []}
    assert tables_with(database, MARK) == set()
    assert {task.key for task in client.tasks()} == {"other"}
    assert client.get(other).output == {"said": "contents of other" * 10_000}
    [row] = client.audit(act="task.erase")
    assert (row["target"], row["namespace"], row["after"]) == (
        "tenant acme",
        "default",
        {"trees": 3, "tasks": 6, "memories": 1, "left": 0},
    )


def test_memory_of_the_subject_alone_is_erased(client: Client, database: Engine) -> None:
    remember(database, key="acme")
    remember(database, key="other")
    remember(database, per="conversation", owner="chat", key="other")
    remember(database, per="agent", owner="Act")
    assert client.erase(conversation_id="chat", dry_run=True)["memories"] == 1
    assert len(list(client.memory_stores())) == 4
    assert client.erase(conversation_id="chat")["memories"] == 1
    assert client.erase(tenant="acme")["memories"] == 1
    assert [each["owner"] for each in client.memory_stores()] == ["other", "Act"]


def remember(database: Engine, *, per: str = "tenant", owner: str | None = None, key: str | None = None) -> None:
    """Put a file with the mark into a store of memory."""
    with database.begin() as connection:
        address = Address("default", "notes", per, owner or key or "", key)
        connection.execute(store.OPEN, store._values(address))
        found = connection.scalar(store.FIND, store._values(address))
        changed = commands.Changed("/memories/a", MARK, {"/memories/a": MARK})
        store._keep(connection, found, "create", changed, Origin("Act"))


def test_statistics_count_what_is_erased(client: Client, database: Engine, chain_of: Any) -> None:
    """Also work that ended a moment ago; and what is counted stays."""
    chain_of(3, key="acme")
    assert client.erase(tenant="acme")["tasks"] == 6
    for _ in range(2):
        assert sum(item["count"] for item in client.stats()["items"]) == 6
        catch_up(database)


def test_messages_and_summaries_of_a_conversation_are_left_out(
    client: Client, database: Engine, define: Define, inline_worker: InlineWorker
) -> None:
    define({"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"})
    agent = {"kind": "agent", "type": "function", "tool": "echo", "config": {"capabilities": ["work"]}}
    define({**agent, "name": "Talk"})
    for talk, key in (("chat", "acme"), ("chat", "other"), ("elsewhere", "other")):
        client.submit("Talk", messages=[{"role": "user", "content": MARK}], conversation_id=talk, key=key)
    inline_worker.run_all()
    with database.begin() as connection:
        connection.execute(text("UPDATE messages SET task_id = NULL WHERE conversation_id = 'elsewhere'"))
        last = connection.scalar(text("SELECT max(id::text) FROM messages WHERE conversation_id = 'chat'"))
        connection.execute(
            text("INSERT INTO conversation_summaries VALUES ('default', 'chat', CAST(:last AS uuid), 'a summary')"),
            {"last": last},
        )
    before = messages(database)
    assert before["chat"] >= 2
    client.erase(tenant="acme")
    assert 0 < messages(database)["chat"] < before["chat"]
    assert "conversation_summaries" not in tables_with(database, "a summary")
    client.erase(conversation_id="chat")
    assert messages(database) == {"elsewhere": before["elsewhere"]}
    client.erase(conversation_id="elsewhere")
    assert tables_with(database, MARK) == set()


def messages(database: Engine) -> dict[str, int]:
    with database.connect() as connection:
        return dict(
            connection.execute(text("SELECT conversation_id, count(*) FROM messages GROUP BY 1")).all()  # type: ignore[arg-type]
        )


def test_tasks_that_have_not_ended_are_left_and_named(client: Client, chain_of: Any, tasks: Tasks) -> None:
    chain_of(key="acme")
    waiting = str(tasks.submit("Chain", {}, key="acme"))
    client.put_schedule("nightly", {"agent": "Chain", "key": "acme"}, interval_seconds=3600)
    erased = client.erase(tenant="acme")
    assert (erased["trees"], erased["left"], erased["schedules"]) == (1, [waiting], ["nightly"])
    client.cancel(waiting)
    assert client.erase(tenant="acme")["left"] == []
    assert list(client.tasks()) == []


def test_messages_of_tasks_that_retention_deleted_are_erased(
    client: Client, database: Engine, define: Define, inline_worker: InlineWorker
) -> None:
    define({"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"})
    define(
        {"kind": "agent", "name": "Talk", "type": "function", "tool": "echo", "config": {"capabilities": ["work"]}},
    )
    client.submit("Talk", messages=[{"role": "user", "content": MARK}], conversation_id="chat")
    inline_worker.run_all()
    with database.begin() as connection:
        connection.execute(text("UPDATE messages SET task_id = NULL"))
    going = client.submit("Talk", messages=[{"role": "user", "content": "go on"}], conversation_id="chat")
    assert MARK in str(stored_messages(database))
    assert client.erase(conversation_id="chat")["left"] == [going.id]
    assert MARK not in str(stored_messages(database))


def stored_messages(database: Engine) -> list[Any]:
    with database.connect() as connection:
        return list(connection.scalars(text("SELECT content FROM messages")))


def test_large_erasures_are_done_page_by_page(client: Client, chain_of: Any, tasks: Tasks) -> None:
    chain_of(5, key="acme")
    chain_of(1, key="other")
    left = {str(tasks.submit("Chain", {}, key="acme")) for _ in range(3)}
    with (
        patch.object(erasure, "WINDOW", 3),
        patch.object(erasure, "MAX_TREES", 2),
        patch.object(retention, "MAX_TASKS", 2),
    ):
        assert client.erase(tenant="acme", dry_run=True)["trees"] == 5
        erased = client.erase(tenant="acme")
    assert (erased["trees"], erased["tasks"], set(erased["left"]), len(erased["left"])) == (5, 10, left, 3)
    assert {task.id for task in client.tasks(key="acme")} == left


def test_dry_run_deletes_nothing(client: Client, database: Engine, chain_of: Any) -> None:
    chain_of(2, key="acme")
    assert client.erase(tenant="acme", dry_run=True)["tasks"] == 4
    assert client.erase(tenant="acme", namespace="elsewhere")["tasks"] == 0
    assert tables_with(database, MARK)
    assert len(list(client.audit(act="task.erase"))) == 1


@pytest.mark.parametrize("sent", [{}, {"tenant": "a", "conversation_id": "b"}, {"tenant": ""}, {"tenant": "\0"}])
def test_subject_must_be_named(http: httpx2.Client, sent: Any) -> None:
    assert http.post("/v1/erasures", json=sent).status_code == 422


def test_only_administrators_erase(with_key: WithKey) -> None:
    for role in ("viewer", "submitter", "operator", "approver", "author"):
        refused = with_key(role).post("/v1/erasures", json={"tenant": "acme"})
        assert (refused.status_code, refused.json()["permission"]) == (403, "tasks:erase")
    bound = with_key("admin", namespace="ours")
    assert bound.post("/v1/erasures", json={"tenant": "acme", "namespace": "theirs"}).status_code == 403
    assert bound.post("/v1/erasures", json={"tenant": "acme"}).status_code == 200
    assert with_key("admin", tenant="acme").post("/v1/erasures", json={"tenant": "acme"}).status_code == 403


def test_command(run_cli: Run, client: Client, chain_of: Any) -> None:
    chain_of(key="acme")
    assert "2 tasks" in run_cli("erase", "--tenant", "acme", "--dry-run").line
    assert run_cli("erase", "--tenant", "acme").code != 0
    assert run_cli("erase", "--tenant", "acme", "--conversation", "x", "--yes").code == 2
    done = run_cli("erase", "--tenant", "acme", "--yes", "--json", "--as", "Ann")
    assert json.loads(done.out)["tasks"] == 2
    assert next(client.audit())["claimed"] == "Ann"
