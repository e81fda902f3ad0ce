"""Cost of a backlog: a million pending tasks of many tenants, compared with five thousand.

    python -m benchmarks.backlog [--tasks N] [--keys N] [--json]

Rows are created by SQL, on a private PostgreSQL and Valkey. The benchmark measures one round of the dispatcher (its
statements and its messages) with both backlogs, and the contents of Valkey afterwards. Compare the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.environment import Environment
from benchmarks.filling import empty, fill_pending, vacuum
from benchmarks.samples import seconds
from benchmarks.systems.minions import CAPABILITY, DEFINITIONS, TOOL
from orchestrator.dispatcher import Dispatcher
from shared.broker import make_app
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.notifications import make_redis
from shared.settings import get_settings

SMALL = 5_000
ROUNDS = 30
WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('bench', '{bench}', 16, 'prefork', 'bench', 1, '0', now() + interval '1 day')"
)
# Simulates workers that have taken and finished the published tasks.
CONSUME = text("UPDATE task_status SET state = 'cancelled' WHERE state = 'queued'")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Environment():
        migrate(get_engine())
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        rows = [measure(tasks, options.keys) for tasks in (SMALL, options.tasks)]
    report(rows, as_json=options.json)


def measure(tasks: int, keys: int) -> dict[str, Any]:
    """Return one row of the table: the median round with this many pending tasks, and the contents of Valkey."""
    settings = get_settings()
    dispatcher = Dispatcher(settings, get_engine(), make_app(settings))
    prepare(tasks, keys)
    rounds = [1000 * seconds(dispatcher.run_once) for _ in range(ROUNDS) if consume() is None]
    with make_redis() as broker:
        memory = broker.info("memory")["used_memory"]
        messages = broker.llen(CAPABILITY)
        broker.flushall()
    dispatcher.close()
    return {
        "pending": tasks,
        "keys": keys,
        "round_ms": round(statistics.median(rounds), 2),
        "slowest_ms": round(max(rounds), 2),
        "messages": messages,
        "valkey_megabytes": round(memory / 1e6, 2),
    }


def prepare(tasks: int, keys: int) -> None:
    """Leave exactly this many pending tasks."""
    engine = get_engine()
    empty(engine)
    fill_pending(engine, tasks, TOOL, CAPABILITY, keys=keys)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM workers"))
        connection.execute(WORKER)
    vacuum(engine)


def consume() -> None:
    """Make room for the next round."""
    with get_engine().begin() as connection:
        connection.execute(CONSUME)


def report(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the table, and the slowdown of the larger backlog."""
    ratio = round(rows[1]["round_ms"] / rows[0]["round_ms"], 2)
    if as_json:
        print(json.dumps({"rows": rows, "ratio": ratio}, indent=2))
        return
    print("  ".join(f"{name:>16}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>16,}" for value in row.values()))
    print(f"a round with {rows[1]['pending']:,} pending tasks takes {ratio} times as long as with {SMALL:,}")


if __name__ == "__main__":
    main()
