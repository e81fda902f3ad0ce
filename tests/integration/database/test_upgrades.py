"""Upgrades from each earlier release, with a row in every table: nothing is lost, and its tasks continue.

The releases are taken from the repository's history; a clone without them skips these tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from alembic import command
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Column, Connection, Engine, MetaData, create_engine, insert, select, text
from sqlalchemy.schema import sort_tables

from orchestrator.api.app import create_app
from orchestrator.observe.counting import catch_up
from orchestrator.replay import replay
from shared.database import schema as database_schema
from shared.database.connections import get_engine
from shared.settings import Settings
from tests.support import schema_dump
from tests.support.earlier_releases import COMMITS, run_python, unpack
from tests.support.lifecycle_driver import LifecycleDriver

HEADS = {"0.1.0": "0001", "0.2.0": "0004"}

# A day of a release, run with its own code: it prints the tasks that it leaves, by situation.
A_DAY = """
import json
from sqlalchemy.orm import Session
from shared.database import get_engine
from shared.definitions import DefinitionStore
from shared.init_db import migrate
from shared.schemas import parse_definition
from tests.by_hand import NOOP, ByHand, agent, function

migrate(get_engine())
relations = [{"agent": "A"}, {"agent": "B"}]
chain = {"kind": "agent", "name": "Chain", "type": "function", "relations": relations}
twice = {"kind": "tool", "name": "twice", "type": "function", "function": "double"}
model = {"kind": "agent", "name": "Model", "tools": ["twice"]}
definitions = [function(), NOOP, twice, agent("A"), agent("B"), chain, model]
with Session(get_engine()) as session, session.begin():
    DefinitionStore(session, lambda code: None).apply([parse_definition(each) for each in definitions])
hand = ByHand(get_engine())
finished = hand.run(input={"b": 1, "a": [None, "ü"]}, idempotency_key="k", conversation_id="c", key="tenant")
hand.finish(finished, output="x" * 70_000, messages=[{"role": "user", "content": "hello"}])
failed = hand.run()
hand.finish(failed, state="failed")
waiting = hand.run(labels={"a": "b"})
[child] = hand.suspend(waiting, children=["B"])
running = hand.run()
pending = hand.submit(conversation_id="c", priority=5)
hand.sql("UPDATE workers SET status = 'stopped'")
print(json.dumps({name: str(globals()[name]) for name in
                  ("finished", "failed", "waiting", "child", "running", "pending")}))
"""

# Values that constraints ask for, in rows that the day has not made. Columns of other names get one by their type.
FITTING: dict[str, Any] = {
    "budgets.on_breach": "ask",
    "limits.scope": "agent",
    "limits.input_tokens": None,
    "limits.input_tokens_seconds": None,
    "limits.output_tokens": None,
    "limits.output_tokens_seconds": None,
    "pauses.scope": "agent",
    "rate_holds.scope": "agent",
    "schedules.cron": None,
    "schedules.missed": "once",
    "unique_tasks.held_while": "running",
    "webhook_deliveries.state": "succeeded",
    "webhook_deliveries.status": "delivered",
}
BY_TYPE: dict[type, Any] = {
    bool: True,
    int: 7,
    float: 1.5,
    str: "a text",
    list: ["one", "two"],
    dict: {"b": 1, "a": [None, "ü"]},
    datetime: datetime(2026, 11, 1, 12, 30, tzinfo=UTC),
}
TASK_PAGES = ("", "/steps", "/executions", "/why")
PAGES = (
    "agents agents/A functions functions/double workers capabilities schedules webhooks pauses limits dead-letters "
    "tasks?outputs=true tasks/counts"
).split()


@dataclass(frozen=True)
class Earlier:
    """A database as an earlier release left it, with a row in every table: it is copied for each test."""

    name: str
    head: str
    tasks: dict[str, UUID]


@dataclass(frozen=True)
class Site:
    """A copy of it."""

    engine: Engine
    head: str
    tasks: dict[str, UUID]


@pytest.fixture(scope="module", params=COMMITS)
def earlier(settings: Settings, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    """Each earlier release, after a day with it."""
    release: str = request.param
    tree = unpack(release, tmp_path_factory.mktemp("release"))
    name = f"release_{release.replace('.', '_')}"
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(get_engine().url.set(database=name))
    tasks = json.loads(run_python(tree, engine, "-c", A_DAY))
    fill(engine)
    engine.dispose()
    return Earlier(name, HEADS[release], {situation: UUID(task) for situation, task in tasks.items()})


@pytest.fixture
def site(new_database: Callable[..., Engine], earlier: Earlier) -> Site:
    """A database of each earlier release, to upgrade."""
    return Site(new_database("upgraded", template=earlier.name), earlier.head, dict(earlier.tasks))


def fill(engine: Engine) -> None:
    """Add a row to each table that has none."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        empty = [table for table in metadata.tables.values() if connection.execute(select(table)).first() is None]
        for table in sort_tables(empty):
            values = {column.name: value_of(connection, column) for column in table.columns if not column.computed}
            connection.execute(insert(table).values(values))


def value_of(connection: Connection, column: Column[Any]) -> Any:
    """A value that the column takes."""
    for key in column.foreign_keys:
        return connection.execute(select(key.column)).scalars().first()
    python_type = column.type.python_type
    return FITTING.get(str(column), uuid4() if python_type is UUID else BY_TYPE.get(python_type))


def rows_of(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables."""
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        return {
            table: list(connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} t")))
            for table in tables
            if table != "alembic_version"
        }


def test_an_upgrade_keeps_every_row(site: Site) -> None:
    before = rows_of(site.engine)
    assert [table for table, rows in before.items() if not rows] == []

    assert database_schema.migrate(site.engine) == (site.head, "0024")
    assert database_schema.migrate(site.engine, after=True) == ("0024", "0024")

    assert schema_dump.difference(site.engine) == ""
    after = rows_of(site.engine)
    for table, rows in before.items():
        kept = [{column: row[column] for column in rows[0]} for row in after[table]]
        assert sorted(kept, key=str) == sorted(rows, key=str), table


def test_tasks_of_an_earlier_release_continue_after_the_upgrade(site: Site) -> None:
    database_schema.migrate(site.engine)
    driver = LifecycleDriver(site.engine)
    tasks = site.tasks
    driver.finish(tasks["running"])
    driver.finish(tasks["child"], driver.again(tasks["child"]))
    driver.finish(tasks["waiting"], driver.again(tasks["waiting"]))
    driver.finish(tasks["pending"], driver.again(tasks["pending"]))
    for name in ("finished", "failed"):
        again = driver.call(replay, tasks[name], pinned=True, submitted_by="test").task_id
        driver.finish(again, driver.again(again))
        tasks[f"{name} again"] = again
    expected = dict.fromkeys(tasks, "succeeded") | {"failed": "failed"}
    assert {name: driver.state(task) for name, task in tasks.items()} == expected
    # What has ended since the upgrade is counted.
    catch_up(site.engine)
    ended = "SELECT sum(count)::integer FROM statistics WHERE kind = 'task' AND grain = 'total'"
    assert driver.sql(ended) == len(tasks) - len(("finished", "failed"))


def test_the_api_reads_every_row_of_an_earlier_release(site: Site, settings: Settings) -> None:
    database_schema.migrate(site.engine)
    url = site.engine.url.render_as_string(hide_password=False)
    app = create_app(settings.model_copy(update={"database_url": SecretStr(url)}))
    pages = [*PAGES, *(f"tasks/{task}{page}" for task in site.tasks.values() for page in TASK_PAGES)]
    with TestClient(app, headers={"Authorization": f"Bearer {settings.require_api_key()}"}) as client:
        answers = {page: client.get(f"/v1/{page}") for page in pages}
    assert {page: answer.text for page, answer in answers.items() if answer.status_code != 200} == {}


def test_revisions_make_the_tables_of_an_earlier_release(site: Site, new_database: Callable[..., Engine]) -> None:
    """The revisions have been edited since: the functions are in `shared/tasks/sql` now."""
    engine = new_database("by_revisions")
    with database_schema.alembic_config() as config, engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, site.head)
        connection.commit()
    assert schema_dump.tables_of(engine).splitlines() == schema_dump.tables_of(site.engine).splitlines()
