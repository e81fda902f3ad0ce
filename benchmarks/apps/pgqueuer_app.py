"""PgQueuer's entry points."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

import psycopg
from pgqueuer import PgQueuer
from pgqueuer.db import PsycopgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries


async def main() -> PgQueuer:
    """Return the queue of a worker process."""
    connection = await psycopg.AsyncConnection.connect(os.environ["BENCH_DATABASE"], autocommit=True)
    queue = PgQueuer(PsycopgDriver(connection))

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        assert job.payload is not None

    return queue


async def install(address: str) -> None:
    """Create the tables."""
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        await Queries(PsycopgDriver(connection)).install()


async def enqueue(address: str, entrypoint: str, jobs: int) -> None:
    """Submit jobs in one statement."""
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        payloads = [str(number).encode() for number in range(jobs)]
        await Queries(PsycopgDriver(connection)).enqueue([entrypoint] * jobs, payloads, [0] * jobs)


if __name__ == "__main__":  # `pgq run benchmarks.apps.pgqueuer_app:main`, whose log options fail with typer 0.29

    async def _run() -> None:
        # Without aggregation, the log has a line for every job that ended.
        await (await main()).run(log_aggregation_interval=timedelta(0))

    asyncio.run(_run())
