"""A rolling upgrade: processes of the previous release continue on the new schema, beside those of the new one.

The previous release is taken from the repository's history; a clone without it skips these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from shared.contracts.documents import parse_definition
from shared.database import schema
from shared.definitions.store import DefinitionStore
from shared.settings import Settings
from shared.tasks import files, lifecycle, standing_budgets, stops
from shared.tasks.records import NewTask
from tests.support.earlier_releases import run_python, unpack
from tests.support.processes import (
    ROOT,
    Process,
    killed_on_exit,
    start_orchestrator,
    start_worker,
    wait_listening,
    wait_online,
    wait_until,
)

CHILDREN = 3
DEFINITIONS = [
    {
        "kind": "agent",
        "name": "Echo",
        "type": "function",
        "tool": "echo",
        "config": {"capabilities": ["work"]},
    },
    {
        "kind": "agent",
        "name": "Chain",
        "type": "function",
        "relations": [{"agent": "Echo"}] * CHILDREN,
        "config": {"capabilities": ["work"], "chain_strategy": "parallel"},
    },
]
# A tool with an unsafe effect, and a model.
GUARDED = [
    {"kind": "tool", "name": "send", "type": "builtin", "builtin": "echo", "effect": "unsafe"},
    {**DEFINITIONS[0], "name": "Sender", "tool": "send"},
    {"kind": "agent", "name": "Planner", "model": "offline", "config": {"capabilities": ["work"]}},
    {
        "kind": "agent",
        "name": "Coder",
        "model": "claude-sonnet-5-5",
        "tools": ["send"],
        "config": {"code_mode": True, "capabilities": ["work"]},
    },
]
# A tool with an approval policy.
APPROVED = [
    {**GUARDED[0], "name": "pay", "approval": {"roles": ["admin"]}},
    {**DEFINITIONS[0], "name": "Payer", "tool": "pay"},
]
# A session of the previous release, which has prepared its statements and cached the plans of its functions. It prints
# a line after each day, and waits for one before the next.
SESSION = """
import sys
from sqlalchemy.orm import Session
from shared import lifecycle, tasks
from shared.database import make_engine
from shared.definitions import DefinitionStore
from shared.schemas import parse_definition
from shared.settings import get_settings
from shared.states import State
from tests.by_hand import NOOP, ByHand, agent

engine = make_engine(get_settings(), pool_size=1, pre_ping=False)
with Session(engine) as session, session.begin():
    store = DefinitionStore(session, lambda code: None)
    store.apply([parse_definition(each) for each in (NOOP, agent("A"), agent("B"))])
hand = ByHand(engine)

def step(number, status):
    return {"number": number, "kind": "tool_call", "name": "x", "status": status, "effect": "pure",
            "request_hash": str(number), "started_at": "2026-11-29T12:00:00+00:00",
            "finished_at": None if status == "started" else "2026-11-29T12:00:01+00:00"}

def a_day():
    parent = hand.run()
    for status in ("started", "failed", "started", "finished"):
        assert hand.call(lifecycle.write_steps, parent, 1, [step(1, status)]) is not None
    [child] = hand.suspend(parent, children=["B"])
    hand.again(child)
    hand.finish(child)
    assert hand.finish(parent, hand.again(parent)) == State.SUCCEEDED
    asked = hand.run()
    hand.call(lifecycle.write_steps, asked, 1, [{**step(1, "started"), "effect": "unsafe"}])
    hand.release(asked, how="lost", charged=False)
    hand.call(lifecycle.ask, asked, hand.again(asked), {})
    hand.call(lifecycle.decide, asked, "result", who="me", value=1)
    hand.finish(asked, hand.again(asked), state=State.FAILED)
    hand.call(lifecycle.cancel, hand.run(), reason="x")
    for task in (parent, asked):
        hand.row(task)
        for listed in (tasks.list_steps, tasks.list_executions, tasks.list_tree):
            assert hand.call(listed, task, limit=9).items

for _ in range(7):
    a_day()
print("ready", flush=True)
for line in sys.stdin:
    a_day()
    print("well", flush=True)
"""
SUBMIT = text("SELECT minion_submit(:agent, CAST(:input AS jsonb), key => :key)")
DISTURBED = text(
    """
    SELECT t.id, t.agent_name, s.state, s.claim, o.error,
           (SELECT array_agg(e.outcome ORDER BY e.claim) FROM executions e WHERE e.task_id = t.id) AS executions
        FROM tasks t JOIN task_status s ON s.task_id = t.id LEFT JOIN task_outcomes o ON o.task_id = t.id
        WHERE s.state <> 'succeeded' OR o.output IS NULL
           OR (SELECT count(*) FROM executions e WHERE e.task_id = t.id AND e.outcome = 'succeeded') <> 1
           OR EXISTS (SELECT 1 FROM executions e WHERE e.task_id = t.id
                          AND e.outcome NOT IN ('succeeded', 'suspended', 'handed_back'))
    """
)
LIVE = text("SELECT count(*) FROM task_status WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'expired')")
RAN = text("SELECT count(*) FROM executions e JOIN workers w ON w.id = e.worker_id WHERE w.pid = :pid")


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the previous release."""
    return unpack("0.2.0", tmp_path_factory.mktemp("previous"))


@dataclass
class Site:
    """A database, and the processes of two releases on it."""

    engine: Engine
    previous: Path
    logs: Path
    ended: ExitStack

    @property
    def env(self) -> dict[str, str]:
        return {"DATABASE_URL": self.engine.url.render_as_string(hide_password=False), "PYTHONPATH": ""}

    def old_command(self, *arguments: str) -> str:
        """Runs the previous release's `minion` command."""
        return run_python(self.previous, self.engine, "-m", "orchestrator.cli", *arguments)

    def start(self, tree: Path) -> tuple[Process, Process]:
        """An orchestrator and a worker of that release, at work."""
        orchestrator = start_orchestrator(self.logs, env=self.env, cwd=tree)
        self.ended.enter_context(killed_on_exit(orchestrator))
        worker = start_worker(self.logs, "work", 2, env=self.env, cwd=tree)
        self.ended.enter_context(killed_on_exit(worker))
        wait_listening(orchestrator)
        wait_online(self.engine, worker)
        return orchestrator, worker

    def submit(self, agent: str, number: int = 1, key: str | None = None) -> list[UUID]:
        """Submit several tasks."""
        with self.engine.begin() as connection:
            values = {"agent": agent, "input": json.dumps({"n": number}), "key": key}
            return [connection.scalar(SUBMIT, values) for _ in range(number)]

    def sql(self, statement: str) -> Any:
        """The first column of the first row, if there is one."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None

    def all_done(self) -> bool:
        with self.engine.connect() as connection:
            return connection.scalar(LIVE) == 0

    def ran(self, worker: Process) -> int:
        """Return how many executions a worker has had."""
        with self.engine.connect() as connection:
            return int(connection.scalar(RAN, {"pid": worker.pid}) or 0)

    def disturbed(self) -> list[dict[str, Any]]:
        """Tasks that did not succeed, or not in one execution (or one after the wait for sub-tasks)."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(DISTURBED).mappings()]


@pytest.fixture
def site(database: Engine, settings: Settings, previous: Path, tmp_path: Path) -> Iterator[Site]:
    """A database as the previous release made it, with an agent and a chain."""
    outside = database.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS rolling WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE rolling"))
    engine = create_engine(database.url.set(database="rolling"), pool_pre_ping=True)
    try:
        with ExitStack() as ended:
            site = Site(engine, previous, tmp_path, ended)
            (tmp_path / "definitions.json").write_text(json.dumps(DEFINITIONS))
            site.old_command("migrate")
            site.old_command("init")
            site.old_command("apply", str(tmp_path / "definitions.json"))
            yield site
    finally:
        engine.dispose()
        with outside.connect() as connection:
            connection.execute(text("DROP DATABASE rolling WITH (FORCE)"))


def share(site: Site, *workers: Process) -> None:
    """Work comes in until each worker has had more of it."""
    before = [site.ran(worker) for worker in workers]

    def all_have_had_some() -> bool:
        if site.all_done():
            for name in ("Echo", "Newer", "Chain"):
                site.submit(name, 5)
        return all(site.ran(worker) > had for worker, had in zip(workers, before, strict=True))

    wait_until(all_have_had_some, "all workers share the work", 60)


def test_previous_release_works_beside_the_new_one(site: Site) -> None:
    old_orchestrator, old_worker = site.start(site.previous)
    site.submit("Echo", 100)
    site.submit("Chain", 20)
    wait_until(lambda: site.ran(old_worker) > 20, "the old worker is at work")

    assert schema.migrate(site.engine) == ("0004", "0024")
    site.submit("Chain", 5)
    wait_until(site.all_done, "the old release alone on the new schema")
    assert site.disturbed() == []

    new_orchestrator, new_worker = site.start(ROOT)
    with Session(site.engine) as session, session.begin():
        store = DefinitionStore(session, validate_code=lambda function: None)
        store.apply([parse_definition({**DEFINITIONS[0], "name": "Newer"})])
    site.sql("INSERT INTO limits (scope, name, max_running) VALUES ('key', '*', 1)")
    site.submit("Echo", 10, key="tenant")
    site.submit("Chain", 3, key="tenant")
    share(site, old_worker, new_worker)
    new_orchestrator.stop()
    site.submit("Chain", 10)
    wait_until(site.all_done, "the old orchestrator alone", 60)
    assert site.disturbed() == []

    # A process of the previous release may even restart before all are replaced.
    old_orchestrator.stop()
    old_worker.stop()
    old_orchestrator, old_worker = site.start(site.previous)
    share(site, old_worker, new_worker)
    wait_until(site.all_done, "all ended", 60)
    old_orchestrator.stop()
    old_worker.stop()
    new_worker.stop()

    assert schema.migrate(site.engine, after=True) == ("0024", "0024")
    site.start(ROOT)
    site.submit("Chain", 10, key="tenant")
    wait_until(site.all_done, "the new release alone", 60)
    assert site.disturbed() == []
    chains = site.sql("SELECT count(*) FROM tasks WHERE agent_name = 'Chain'")
    assert site.sql("SELECT count(*) FROM tasks WHERE parent_id IS NOT NULL") == CHILDREN * chains


def add_columns(engine: Engine) -> None:
    """Make the first part of a migration: in large tables, while others use them."""
    with schema.alembic_config() as config:
        schema._prepare_large_tables(engine, schema._pending(config, "0004"))


def test_session_of_the_previous_release_continues_while_columns_are_added(site: Site) -> None:
    """Neither plans nor types of rows that it has cached become invalid."""
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=site.previous,
        env={**os.environ, **site.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == "ready\n"
        for upgrade in (add_columns, schema.migrate):
            upgrade(site.engine)
            session.stdin.write("a day\n")
            session.stdin.flush()
            assert session.stdout.readline() == "well\n", upgrade
        session.stdin.close()
    assert session.returncode == 0


def test_previous_release_obeys_stops_and_standing_budgets(site: Site) -> None:
    """It knows neither. A stop suspends its tasks; a model call that must reserve is left to the new release."""

    def waits_for(reason: str) -> bool:
        return bool(site.sql(f"SELECT count(*) FROM task_status WHERE wait_reason = '{reason}'"))

    schema.migrate(site.engine)
    with Session(site.engine) as session, session.begin():
        store = DefinitionStore(session, validate_code=lambda function: None)
        store.apply([parse_definition(each) for each in GUARDED])
    old_orchestrator, old_worker = site.start(site.previous)
    with site.engine.begin() as connection:
        stops.stop(connection, stops.target_of("installation"))
    site.submit("Sender")
    wait_until(lambda: waits_for("stopped"), "the task is stopped")
    assert site.sql("SELECT count(*) FROM steps") == 0
    with site.engine.begin() as connection:
        stops.lift(connection, stops.target_of("installation"))
    wait_until(site.all_done, "the task has continued")

    with site.engine.begin() as connection:
        standing_budgets.set_budget(connection, standing_budgets.target_of("installation"), "day", tokens=10**9)
    site.submit("Planner")
    wait_until(lambda: waits_for("handed_back"), "the task is handed back")
    # It knows neither files nor blocks.
    with site.engine.begin() as connection:
        letter = files.NewFile.read(b"Dear Ann", None, None)
        id, _ = files.store(connection, "default", letter, uploaded_by="test")
        block = {"type": "document", "source": {"type": "file", "file_id": id}}
        said = [{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]
        for given in ({"input": {"letter": {"$file": id}}}, {"messages": said}):
            task = {"agent": "Planner", "namespace": "default", "submitted_by": "test", **given}
            lifecycle.accept(connection, [cast(NewTask, task)])
    handed_back = (
        "SELECT count(DISTINCT e.task_id) FROM executions e JOIN tasks t ON t.id = e.task_id "
        "WHERE e.outcome = 'handed_back' AND t.journal_format = 2"
    )
    wait_until(lambda: site.sql(handed_back) == 2, "tasks with files are handed back")
    # And it does not know that an agent's programs call its tools.
    [coder] = site.submit("Coder")
    reason = f"SELECT wait_reason FROM task_status WHERE task_id = '{coder}'"
    wait_until(lambda: site.sql(reason) == "handed_back", "the task in code mode is handed back")
    with site.engine.begin() as connection:
        lifecycle.cancel(connection, coder, reason="no model here")
    assert site.sql("SELECT count(*) FROM steps WHERE kind = 'model_call'") == 0
    old_orchestrator.stop()
    old_worker.stop()
    site.start(ROOT)
    wait_until(site.all_done, "the new release has run it", 60)
    assert [each["agent_name"] for each in site.disturbed()] == ["Coder"]


def test_previous_release_neither_calls_nor_decides_where_an_approval_policy_holds(site: Site) -> None:
    schema.migrate(site.engine)
    with Session(site.engine) as session, session.begin():
        store = DefinitionStore(session, validate_code=lambda function: None)
        store.apply([parse_definition(each) for each in APPROVED])
    old_orchestrator, old_worker = site.start(site.previous)
    [task] = site.submit("Payer")
    reason = f"SELECT wait_reason FROM task_status WHERE task_id = '{task}'"
    wait_until(lambda: site.sql(reason) == "handed_back", "the old worker hands the task back")
    assert site.sql("SELECT count(*) FROM steps") == 0
    old_worker.stop()
    new_orchestrator, _ = site.start(ROOT)
    wait_until(lambda: site.sql(reason) == "approval", "the new worker proposes the call", 60)

    def decide(orchestrator: Process) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {os.environ['MINION_API_KEY']}"}
        with httpx2.Client(base_url=wait_listening(orchestrator), headers=headers, trust_env=False, timeout=30) as http:
            return http.post(f"/v1/tasks/{task}/decisions", json={"verdict": "approve", "step": 1})

    refused = decide(old_orchestrator)
    assert (refused.status_code, "release 0.3 or later" in refused.json()["detail"]) == (409, True)
    assert site.sql(reason) == "approval"
    assert decide(new_orchestrator).status_code == 200
    wait_until(site.all_done, "the approved call is made", 60)
    assert site.disturbed() == []
