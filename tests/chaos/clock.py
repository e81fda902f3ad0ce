"""A clock of PostgreSQL's host that a test can move, and a system whose tasks depend on the clock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

from sqlalchemy import TextClause, text

from orchestrator.local.embedded.postgres import Postgres
from orchestrator.schedules import store
from orchestrator.schedules.store import ScheduleDefinition
from shared.database.connections import persist
from tests.chaos.system import Minions, Timing, seconds
from tests.support.processes import wait_until

HOUR = 3600.0
POSITIONS = (-HOUR, 0.0, HOUR, 0.0)  # seconds by which the clock is ahead after each strike
PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")
LIBRARY = "libfaketime.so.1"
NEEDED = f"{LIBRARY} was not found: install libfaketime (Debian and Ubuntu: apt-get install libfaketime)"
WAIT_EVERY = 7
WAIT_SECONDS = 1.0
TICK = {"name": "tick", "interval_seconds": 1, "missed": "skip"}

OPEN = text("SELECT task_id FROM task_status WHERE state IN ('pending', 'queued', 'running', 'waiting')")
ENDED = text("SELECT count(*) FROM task_outcomes WHERE task_id = ANY (CAST(:tasks AS uuid[]))")
TICKS = text("SELECT count(*) FROM tasks WHERE submitted_by = :submitter")
REST = text("UPDATE schedules SET enabled = false")


def find_library() -> Path | None:
    """Return the preload library, if it is installed."""
    found = (path for place in PLACES for path in Path("/").glob(f"{place[1:]}/{LIBRARY}"))
    return next(found, None)


class FakeClock:
    """The time of day that a PostgreSQL server sees. Its timers, and all other processes, keep the real time."""

    def __init__(self, library: Path, file: Path) -> None:
        self.library = library
        self.file = file
        self._positions = cycle(POSITIONS)
        self._set(0.0)

    def install(self, server: Postgres) -> None:
        """Restart the server, now and at every later start, with this clock."""
        command = server.command
        # `env` runs as the server's user. The library creates files that belong to the user that first loads it.
        preload = [
            "/usr/bin/env",
            f"LD_PRELOAD={self.library}",
            f"FAKETIME_TIMESTAMP_FILE={self.file}",
            "FAKETIME_NO_CACHE=1",  # read with every look at the clock: all processes jump together
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        ]
        server.stop()
        server.command = lambda: [*preload, *command()]  # type: ignore[method-assign]
        server.start()

    def move(self) -> None:
        """Jump to the next position."""
        self._set(next(self._positions))

    def _set(self, ahead: float) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(f"{ahead:+.0f}\n")
        new.chmod(0o644)  # the server runs as another user
        new.replace(self.file)


class Clocked(Minions):
    """Minions with a movable clock, tasks that wait and have deadlines, and a schedule."""

    def __init__(self, folder: Path, timing: Timing, seed: str, library: Path) -> None:
        super().__init__(folder, timing, seed)
        self.clock = FakeClock(library, folder / "clock")

    def prepare(self) -> None:
        self.clock.install(self.servers.postgres)
        super().prepare()
        request = {"agent": "chaos", "input": {"seconds": 0.01}}
        with self.engine.begin() as connection:
            store.put(connection, "default", ScheduleDefinition.parse({**TICK, "request": request}))

    def request(self, number: int) -> dict[str, Any]:
        wait = {"wait": WAIT_SECONDS} if number % WAIT_EVERY == 0 else {}
        deadline = datetime.now(UTC) + timedelta(days=1)
        return {**super().request(number), "input": {"seconds": seconds(number), **wait}, "deadline": deadline}

    def in_flight(self) -> list[str]:
        return [str(task) for task in self._scalars(OPEN)]

    def recover(self, in_flight: Sequence[str]) -> float:
        """Wait until tasks have ended, and the schedule has run once more; return the seconds that took."""
        began, ticks = time.monotonic(), self.ticks()
        ended = 0
        while ended < len(in_flight):
            before = ended
            wait_until(lambda before=before: self._count(in_flight) > before, "one more task ended", self.patience)
            ended = self._count(in_flight)
        wait_until(lambda: self.ticks() > ticks, "the schedule runs", self.patience)
        return time.monotonic() - began

    def ticks(self) -> int:
        """Return how many tasks the schedule has submitted."""
        return int(self._scalars(TICKS, submitter=store.submitter(str(TICK["name"])))[0])

    def rest(self) -> None:
        """End the schedule, and wait for the end of its last task."""
        with self.engine.begin() as connection:
            connection.execute(REST)
        wait_until(lambda: not self.in_flight(), "scheduled tasks ended", self.patience)

    def _count(self, tasks: Sequence[str]) -> int:
        return int(self._scalars(ENDED, tasks=tasks)[0])

    def _scalars(self, statement: TextClause, **values: Any) -> list[Any]:
        """Query again if a time-out of the server, made due by a jump of the clock, ends the session."""

        def ask() -> list[Any]:
            with self.engine.connect() as connection:
                return list(connection.scalars(statement, values))

        return persist(ask)
