"""Processor time of tasks by process, above what the servers use while no task runs."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.environment import Environment
from benchmarks.processes import Processes
from benchmarks.samples import TOTAL
from benchmarks.systems.system import System

IDLE_SECONDS = 2.0


class Costs:
    """What the tasks in each row of a table cost.

    All systems run side by side and poll the same servers. The rate of that is measured once, while no task runs, and
    subtracted; it includes the polling of the system under test itself.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._idle = self._idle_rate()
        self._seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._tasks: dict[str, int] = defaultdict(int)

    @contextmanager
    def of(self, row: str, system: System, tasks: int) -> Iterator[None]:
        """Add the processor time of the block to the costs of these tasks, unless the block fails."""
        before, began = self._read(system), time.monotonic()
        yield
        after, duration = self._read(system), time.monotonic() - began
        for role, seconds in after.items():
            self._seconds[row][role] += seconds - before[role] - self._idle.get(role, 0.0) * duration
        self._tasks[row] += tasks

    def per_task(self) -> dict[str, dict[str, float]]:
        """Return milliseconds by role, and their total, by row."""
        rows = {}
        for name, roles in self._seconds.items():
            row = {role: max(0.0, round(1000 * seconds / self._tasks[name], 6)) for role, seconds in roles.items()}
            rows[name] = {**row, TOTAL: sum(row.values())}
        return rows

    def _idle_rate(self) -> dict[str, float]:
        before = self._environment.server_seconds(Processes())
        time.sleep(IDLE_SECONDS)
        after = self._environment.server_seconds(Processes())
        return {role: (after[role] - before[role]) / IDLE_SECONDS for role in after}

    def _read(self, system: System) -> dict[str, float]:
        processes = Processes()
        return {
            **system.processor_seconds(processes),
            **self._environment.server_seconds(processes),
            "submitter": processes.own(os.getpid()),
        }
