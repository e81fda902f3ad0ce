"""Size of an agent's turns in the journal, in short and in long conversations.

    python -m benchmarks.journal [--turns 10 50 200] [--json]

An agent makes the given number of tool turns against a local server for the Messages API, on a private PostgreSQL. Each
turn is a model call and a tool call with about a kilobyte of new text. A journal that stored the conversation in each
step would grow with the square of the turns; compare the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import string
import time
from contextlib import ExitStack
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.environment import Environment
from minions import testing
from orchestrator.preparer import prepare_pending
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import get_engine, transaction
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings
from shared.tasks import lifecycle
from shared.tasks.queries import get_task
from shared.tasks.states import State
from shared.tasks.submission import submit_within
from workers import minion

DEFINITIONS: list[dict[str, Any]] = [
    {
        "kind": "tool",
        "name": "echo",
        "type": "builtin",
        "builtin": "echo",
        "effect": "idempotent",
        "input_schema": {"type": "object"},
    },
    {
        "kind": "agent",
        "name": "talker",
        "model": "claude-sonnet-5-5",
        "tools": ["echo"],
        "config": {"capabilities": ["bench"], "max_turns": 1000},
    },
]
WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('bench', '{bench}', 1, 'solo', 'bench', 1, '0', now() + interval '1 day') RETURNING id"
)
# Stored size of the columns, possibly compressed and out of line; plus 24 bytes of header per row.
BYTES = text(
    "SELECT sum(24 + COALESCE(pg_column_size(input), 0) + COALESCE(pg_column_size(output), 0) "
    "+ COALESCE(pg_column_size(error), 0) + COALESCE(pg_column_size(usage), 0) + pg_column_size(name) "
    "+ pg_column_size(request_hash)) FROM steps WHERE task_id = :task"
)
TABLE = text("SELECT pg_table_size('steps')")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(Environment())
        api = stack.enter_context(testing.messages_api())
        os.environ |= {"ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_API_KEY": testing.KEY, "NO_PROXY": "127.0.0.1"}
        get_settings.cache_clear()
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        rows = [measure(api, turns) for turns in options.turns]
    report(rows, as_json=options.json)


def script(turns: int) -> list[dict[str, Any]]:
    """Return this many tool turns with incompressible text, then an answer."""
    source = random.Random(turns)

    def words(characters: int) -> str:
        return "".join(source.choices(string.ascii_letters + " ", k=characters))

    calls = [testing.tool_use(("echo", {"text": words(300)}), said=words(200)) for _ in range(turns)]
    return [*calls, testing.text("Done.")]


def measure(api: testing.MessagesApi, turns: int) -> dict[str, Any]:
    """Return one row of the table."""
    with get_engine().begin() as connection:
        connection.execute(text("TRUNCATE tasks, workers CASCADE"))
        worker: UUID = connection.execute(WORKER).scalar_one()
    empty = table_size()
    api.script = script(turns)
    began = time.perf_counter()
    task = run(worker)
    seconds = time.perf_counter() - began
    with get_engine().connect() as connection:
        columns = int(connection.execute(BYTES, {"task": task}).scalar_one())
    return {
        "turns": turns,
        "bytes_per_turn": round(columns / turns),
        "table_bytes_per_turn": round((table_size() - empty) / turns),
        "seconds": round(seconds, 2),
    }


def run(worker: UUID) -> UUID:
    """Run one task of the agent in this process.

    Raises:
        RuntimeError: the task did not succeed.
    """
    with transaction() as connection:
        request = TaskRequest(agent="talker", input="Talk")
        task = submit_within(connection, [request], submitted_by="bench")[0].task_id
    prepare_pending(get_engine())
    with transaction() as connection:
        [message] = lifecycle.dispatch(connection, lease=3600, window=1)
    if minion.run(message.task_id, message.claim, worker) != State.SUCCEEDED:
        with get_engine().connect() as connection:
            raise RuntimeError(f"The task did not succeed: {get_task(connection, task)['error']}")
    return task


def table_size() -> int:
    """Return the bytes of the table including out-of-line storage, without dead rows."""
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (FULL) steps"))
        return int(connection.execute(TABLE).scalar_one())


def report(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the table, with each row's bytes relative to the first row."""
    for row in rows:
        row["ratio"] = round(row["bytes_per_turn"] / rows[0]["bytes_per_turn"], 2)
        row["table_ratio"] = round(row["table_bytes_per_turn"] / rows[0]["table_bytes_per_turn"], 2)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("  ".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>20,}" for value in row.values()))


if __name__ == "__main__":
    main()
