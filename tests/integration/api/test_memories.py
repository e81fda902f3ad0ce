"""What models remember, over HTTP, in the client and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from minions import Client, errors
from shared.access.roles import MASK
from shared.contracts.server_tools import Memory
from shared.memories import commands, store
from shared.memories.store import Address, Origin
from tests.integration.api.conftest import WithKey

NOTE = "/memories/note.md"


@pytest.fixture
def remember(database: Engine) -> Callable[..., str]:
    """Changes the store of a tenant; returns its id."""

    def make(key: str, *changes: dict[str, Any], namespace: str = "default") -> str:
        address = Address(namespace, "notes", "tenant", key, key)
        with database.begin() as connection:
            connection.execute(store.OPEN, store._values(address))
            found = connection.scalar(store.FIND, store._values(address))
            for fields in changes:
                files = store.StoredFiles(connection, found)
                made = commands.change(files, commands.checked(fields), Memory(per="tenant"))
                store._keep(connection, found, fields["command"], made, Origin("Agent"))
        return str(found)

    return make


CREATE = {"command": "create", "path": NOTE, "file_text": "Likes tea.\n"}
EDIT = {"command": "str_replace", "path": NOTE, "old_str": "tea", "new_str": "coffee"}


def test_stores_files_and_versions_are_shown(client: Client, remember: Callable[..., str]) -> None:
    found = remember("ann", CREATE, EDIT)
    remember("bob")
    assert [each["owner"] for each in client.memory_stores()] == ["ann", "bob"]
    [listed] = client.memory_stores(owner="ann", tool="notes", namespace="default")
    assert (listed["id"], listed["files"], listed["bytes"]) == (found, 1, len("Likes coffee.\n"))
    shown = client.memory_store(found)
    assert [(file["path"], file["number"]) for file in shown["files"]] == [(NOTE, 2)]
    assert [change["command"] for change in shown["history"]] == ["str_replace", "create"]
    assert client.memory_file(found, NOTE) == "Likes coffee.\n"
    assert client.memory_file(found, NOTE, change=1) == "Likes tea.\n"
    for path, change in (("/memories/other", None), (NOTE, 9)):
        with pytest.raises(errors.NotFound, match="There is no such file"):
            client.memory_file(found, path, change=change)


def test_deleted_file_keeps_its_versions(client: Client, remember: Callable[..., str]) -> None:
    found = remember("ann", CREATE)
    assert client.delete_memory_file(found, NOTE) == [NOTE]
    with pytest.raises(errors.InvalidInput, match="does not exist"):
        client.delete_memory_file(found, NOTE)
    with pytest.raises(errors.NotFound):
        client.memory_file(found, NOTE)
    assert client.memory_file(found, NOTE, change=1) == "Likes tea.\n"
    assert client.memory_file(found, NOTE, change=2) is None
    client.delete_memory(found)
    for call in (client.memory_store, client.delete_memory):
        with pytest.raises(errors.NotFound, match="There is no store of memory"):
            call(found)
    assert [row["act"] for row in client.audit(act="memory")] == ["memory.delete", "memory.delete_file"]


def test_paths_and_contents_are_masked(with_key: WithKey, remember: Callable[..., str]) -> None:
    found = remember("ann", CREATE)
    http = with_key("viewer")
    shown = http.get(f"/v1/memory/{found}").json()
    assert (shown["files"][0]["path"], shown["history"][0]["path"]) == (MASK, MASK)
    assert http.get(f"/v1/memory/{found}/file", params={"path": NOTE}).json()["content"] == MASK
    assert http.delete(f"/v1/memory/{found}").status_code == 403


def test_key_of_a_namespace_sees_its_stores_alone(with_key: WithKey, remember: Callable[..., str]) -> None:
    theirs, ours = remember("ann", CREATE), remember("ann", namespace="ours")
    http = with_key("admin", namespace="ours")
    assert [each["id"] for each in http.get("/v1/memory").json()["items"]] == [ours]
    for answer in (http.get(f"/v1/memory/{theirs}"), http.delete(f"/v1/memory/{theirs}")):
        assert answer.status_code == 404
    assert http.get("/v1/memory", params={"namespace": "default"}).status_code == 403


def test_stores_are_listed_by_pages(client: Client, http: Any, remember: Callable[..., str]) -> None:
    ids = [remember(f"tenant-{number}") for number in range(5)]
    first = http.get("/v1/memory", params={"limit": 3}).json()
    rest = http.get("/v1/memory", params={"limit": 3, "cursor": first["next"]}).json()
    assert [each["id"] for each in first["items"] + rest["items"]] == ids
    assert rest["next"] is None


def test_commands_list_show_and_delete(run_cli: Any, remember: Callable[..., str]) -> None:
    found = remember("ann", CREATE)
    listed = run_cli("memory", "list", "--json")
    assert [each["id"] for each in json.loads(listed.out)] == [found]
    assert NOTE in run_cli("memory", "show", found).out
    assert run_cli("memory", "show", found, NOTE).out == "Likes tea.\n\n"
    assert "1 files are deleted" in run_cli("memory", "delete", found, NOTE).out
    assert "(deleted)" in run_cli("memory", "show", found, NOTE, "--change", "2").out
    assert "The store is deleted" in run_cli("memory", "delete", found, "--yes").out
    missing = run_cli("memory", "show", str(uuid4()))
    assert "There is no store of memory" in missing.err
