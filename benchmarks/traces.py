"""Cost of traces: what exporting a no-op task takes, beside what its life takes in PostgreSQL.

    python -m benchmarks.traces [--rounds N]

As `benchmarks.metrics`: tasks live by SQL, on a private PostgreSQL, and then their three spans each are exported to a
collector in another process. Processor time is that of PostgreSQL's process for the connection, and of this one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.environment import Environment
from benchmarks.metrics import BATCH, lives
from benchmarks.processes import Processes
from benchmarks.systems.minions import CAPABILITY, DEFINITIONS
from orchestrator.tracing import state
from orchestrator.tracing.tracer import Tracer
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import get_settings

WORKER = text(
    "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
    "VALUES ('bench', ARRAY[:capability], 1, 'solo', 'here', 1, '0', now() + interval '1 day')"
)
IDLE_ROUNDS = 200


def main() -> None:
    """Run the benchmark and print what it measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with Environment(replies=()), collecting() as url:
        engine = get_engine()
        migrate(engine)
        with Session(engine) as session:
            store_definitions(session, [parse_definition(definition) for definition in DEFINITIONS])
        with engine.begin() as connection:
            connection.execute(WORKER, {"capability": CAPABILITY})
        tracer = Tracer(
            get_settings().model_copy(update={"otel_exporter_otlp_endpoint": url, "lease_seconds": 600.0}), engine
        )
        tracer.run_once()
        measure(engine, tracer, options.rounds)
        tracer.close()


def measure(engine: Engine, tracer: Tracer, rounds: int) -> None:
    """Print the processor time of exports, for each task, and of idle rounds."""
    living, reading, sending = [], [], []
    for _ in range(rounds):
        living.append(lives(engine))
        in_postgres, here = export(engine, tracer)
        reading.append(in_postgres / (BATCH + 20))
        sending.append(here / (BATCH + 20))
    idle = sum(export(engine, tracer)[0] for _ in range(IDLE_ROUNDS)) / IDLE_ROUNDS
    base, read, sent = (1e6 * statistics.mean(values) for values in (living, reading, sending))
    with engine.connect() as connection:
        exported = connection.scalar(text("SELECT exported FROM tracing_state"))
    print(f"a task's life in PostgreSQL, {rounds} rounds of {BATCH} tasks each: {base:.0f} µs")
    print(f"  export in PostgreSQL: {read:.0f} µs a task ({100 * read / base:.1f} %)")
    print(f"  export in the orchestrator: {sent:.0f} µs a task ({100 * sent / base:.1f} %)")
    print(f"  a round without work: {1e6 * idle:.0f} µs of PostgreSQL; {exported:,} spans were exported")


def export(engine: Engine, tracer: Tracer) -> tuple[float, float]:
    """Export everything that has ended; return the processor seconds of PostgreSQL and of this process."""
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    before, here = Processes().own(pid), time.process_time()
    tracer.run_once()
    while state.next_range(engine) is not None:
        tracer.run_once()
    return Processes().own(pid) - before, time.process_time() - here


@contextmanager
def collecting() -> Iterator[str]:
    """Run a collector that accepts everything, in another process; give its address."""
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
"""


if __name__ == "__main__":
    main()
