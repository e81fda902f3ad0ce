"""A worker is killed at each point of a task that searches, runs code and remembers: nothing is done or paid for twice.

The points are in the database: a trigger makes the statement wait until the worker is dead.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi, code_execution, said, tool_use, web_search
from shared.memories import store
from tests.conftest import Define
from tests.integration.conftest import Tasks
from tests.support.forks import nursery_of_lanes
from tests.support.lanes import is_alive, lanes_of
from tests.support.model_client import use_model_url
from tests.support.processes import Process, killed_on_exit, start_worker, wait_online, wait_until

LOCK = 4242
NOTE = "/memories/sources.md"
CONTAINER = {"id": "container_1", "expires_at": "2026-11-01T12:05:00Z"}
CALLS = [
    ("memory", {"command": "create", "path": NOTE, "file_text": "one\n"}),
    ("memory", {"command": "insert", "path": NOTE, "insert_line": 1, "insert_text": "two"}),
]
TURNS = [
    said(
        web_search("boats", ("Boats", "https://example.com/boats")),
        code_execution("python count.py", "2", files=("file_1",)),
        tool_use(*CALLS)["content"],
        container=CONTAINER,
    ),
    said(web_search("ships", ("Ships", "https://example.com/ships")), stop_reason="pause_turn"),
    tool_use(("memory", {"command": "view", "path": NOTE})),
    testing.text("Two boats."),
]
# The table, the time of the trigger, the row at which it waits, and the number of calls that must be repeated.
POINTS = {
    "within the first change": ("memory_versions", "BEFORE INSERT", "true", 0),
    "at the commit of the second change": ("memory_changes", "DEFERRED", "NEW.number = 2", 0),
    "after the second change": ("steps", "BEFORE INSERT OR UPDATE", "NEW.number = 3 AND NEW.status = 'finished'", 0),
    "after a search": ("steps", "BEFORE INSERT OR UPDATE", "NEW.number = 4 AND NEW.status = 'finished'", 1),
}
WAITING = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND NOT granted")
# Else the statement would still land.
END_STATEMENT = text("SELECT pg_terminate_backend(:pid, 5000)")


class Api(MessagesApi):
    """Answers by the number of turns in the request, so that a repeated request gets the same answer."""

    def _next(self, body: dict[str, Any]) -> dict[str, Any]:
        return TURNS[turns_in(body)]


def turns_in(body: dict[str, Any]) -> int:
    return sum(message["role"] == "assistant" for message in body["messages"])


@pytest.fixture(scope="module")
def api() -> Iterator[MessagesApi]:
    with testing.messages_api(Api()) as served, pytest.MonkeyPatch.context() as patch, use_model_url(served.url, patch):
        yield served


@pytest.fixture(scope="module")
def start(api: MessagesApi, tool_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts workers, and kills what is left of them."""
    folder = tmp_path_factory.mktemp("workers")
    with ExitStack() as stack:

        def begin() -> Process:
            process = start_worker(folder, "researched")
            stack.enter_context(killed_on_exit(process))
            return process

        yield begin


@pytest.fixture(scope="module")
def workers(start: Any) -> list[Process]:
    """The worker that lives: each test kills it, and leaves another one."""
    return [start()]


@contextmanager
def held(engine: Engine, table: str, when: str, row: str) -> Iterator[None]:
    """Make statements wait at a row until the block ends. The trigger itself is gone before that."""
    kind = "CONSTRAINT TRIGGER" if when == "DEFERRED" else "TRIGGER"
    event = "AFTER INSERT" if when == "DEFERRED" else when
    deferred = "DEFERRABLE INITIALLY DEFERRED" if when == "DEFERRED" else ""
    function = (
        f"CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM pg_advisory_xact_lock_shared({LOCK}); RETURN NEW; END $$"
    )
    with engine.begin() as connection:
        connection.execute(text(function))
        connection.execute(
            text(f"CREATE {kind} hold {event} ON {table} {deferred} FOR EACH ROW WHEN ({row}) EXECUTE FUNCTION hold()")
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as holder:
        holder.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
        try:
            yield
        finally:
            holder.execute(text(f"SELECT pg_advisory_unlock({LOCK})"))
    with engine.begin() as connection:
        connection.execute(text(f"DROP TRIGGER hold ON {table}"))


def waiting(engine: Engine) -> int | None:
    """Return the process of the server that waits at the point."""
    with engine.connect() as connection:
        pid: int | None = connection.scalar(WAITING, {"lock": LOCK})
        return pid


def kill_with_lane(worker: Process) -> None:
    """Kill a worker, and wait until its lane, which has a separate session, has ended too."""
    lanes = lanes_of(nursery_of_lanes(), worker.pid)
    os.killpg(worker.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, lanes)), "the lane has ended with its worker")


@pytest.mark.parametrize("point", POINTS)
def test_nothing_is_done_twice_when_the_worker_is_killed(
    point: str,
    api: MessagesApi,
    start: Any,
    workers: list[Process],
    define: Define,
    tasks: Tasks,
    database: Engine,
    loops: None,
) -> None:
    table, when, row, again = POINTS[point]
    define(
        {"kind": "tool", "name": "search", "type": "web_search", "web_search": {"max_uses": 2, "max_uses_per_task": 3}},
        {"kind": "tool", "name": "code", "type": "code_execution"},
        {"kind": "tool", "name": "notes", "type": "memory", "memory": {"per": "tenant"}},
        {
            "kind": "agent",
            "name": "Researcher",
            "model": "claude-sonnet-5-5",
            "tools": ["search", "code", "notes"],
            "config": {"capabilities": ["researched"]},
        },
    )
    api.requests.clear()
    victim = workers.pop()
    wait_online(database, victim)
    with held(database, table, when, row):
        task = tasks.submit("Researcher", "How many boats?", key="ann", budget={"dollars": 50.0})
        pid = wait_until(lambda: waiting(database), f"the worker is {point}")
        kill_with_lane(victim)
        if again:
            with database.begin() as connection:
                connection.execute(END_STATEMENT, {"pid": pid})
    workers.append(start())
    ended = tasks.wait(task)
    assert ended["output"] == {"content": "Two boats."}, ended["error"]
    paid = Counter(map(turns_in, api.requests))
    assert sorted(paid) == [0, 1, 2, 3]
    assert sum(paid.values()) == 4 + again
    with database.connect() as connection:
        [found] = store.stores(connection, "default", limit=10)
        assert found["changes"] == 2
        assert store.read(connection, found["id"], NOTE) == "one\ntwo\n"
    offered = {turns_in(request): request["tools"][0].get("max_uses") for request in api.requests}
    assert offered == {0: 2, 1: 2, 2: 1, 3: 1}
    assert {request.get("container") for request in api.requests if turns_in(request)} == {"container_1"}
