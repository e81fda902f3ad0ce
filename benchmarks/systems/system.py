"""What every system under test can do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import ClassVar

from benchmarks.environment import Environment
from benchmarks.processes import Processes
from tests.support.processes import Process

WORKERS = 2
"""Worker processes of each system."""

PATIENCE = 300.0
POLL_SECONDS = 0.02
RESULT_POLL_SECONDS = 0.01
"""Interval of callers that poll for a result, where the library lets them choose."""

WORKER_POLL_SECONDS = 0.1
"""Interval of workers that poll for tasks, where the library lets them choose; the defaults are a second."""


class System(ABC):
    """A task queue with its workers.

    Attributes:
        name: in tables.
        needs: the module that must be installed.
        submits: False if another system submits in the same way.
        keeps: what it keeps of a task, and what a crash can lose or repeat.
        settings: how it was set up, beyond its defaults.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    submits: ClassVar[bool] = True
    keeps: ClassVar[str]
    settings: ClassVar[str]

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.workers: list[Process] = []

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the library can be imported."""
        return find_spec(cls.needs) is not None

    @abstractmethod
    def start(self) -> None:
        """Start the processes; they need not be ready yet."""

    @abstractmethod
    def submit(self, tasks: int, *, served: bool = True) -> None:
        """Submit no-op tasks in the fastest way that the documentation offers, and return when all are accepted.

        Args:
            served: False for a queue without a worker: nothing but the submission is measured.
        """

    @abstractmethod
    def is_idle(self) -> bool:
        """Return whether every submitted task has ended and its outcome is recorded. Must be cheap."""

    @abstractmethod
    def recorded(self) -> int:
        """Return the number of tasks that have ever succeeded."""

    def processor_seconds(self, processes: Processes) -> dict[str, float]:
        """Return the processor time of its processes, by role."""
        return {"workers": sum(processes.tree(worker.pid) for worker in self.workers)}

    def launch(self, *arguments: str, **environment: str) -> None:
        """Start a worker process."""
        self.workers.append(self.environment.launch(list(arguments), environment))

    def run(self, tasks: int, submit: Callable[[int], None] | None = None) -> float:
        """Return the seconds from the submission of tasks until the last outcome is recorded.

        Args:
            submit: submits the tasks; by default, no-op tasks.

        Raises:
            TimeoutError: the tasks did not end.
            AssertionError: some tasks did not succeed.
        """
        self.wait_until_idle()
        before, began = self.recorded(), time.perf_counter()
        (submit or self.submit)(tasks)
        self.wait_until_idle()
        seconds = time.perf_counter() - began
        succeeded = self.recorded() - before
        assert succeeded == tasks, f"{succeeded} of {tasks} tasks succeeded"
        return seconds

    def wait_until_idle(self) -> None:
        """Wait for the end of all tasks.

        Raises:
            TimeoutError: they did not end.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.is_idle():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not idle after {PATIENCE:g} s\n{self.output()}")
            for worker in self.workers:
                if not worker.running:
                    raise RuntimeError(f"a worker ended by itself\n{self.output()}")
            time.sleep(POLL_SECONDS)

    def output(self) -> str:
        """Return the end of what its processes have written."""
        return "\n".join(worker.output()[-1500:] for worker in self.workers)


class RoundTrips(System):
    """A system whose caller can wait for a task's result."""

    @abstractmethod
    def call(self) -> None:
        """Submit one no-op task, and wait for its result."""


class CallsModel(System):
    """A system whose tasks can call a model.

    Attributes:
        model_row: name in tables of model calls.
    """

    model_row: ClassVar[str]

    @abstractmethod
    def submit_model_calls(self, tasks: int) -> None:
        """Submit tasks that make one model call each."""


class Composes(RoundTrips):
    """A system that runs several tasks as one."""

    @abstractmethod
    def chain(self, steps: int) -> None:
        """Run no-op tasks one after the other, each with the output of the last, and wait for the end."""

    @abstractmethod
    def fan_out(self, tasks: int) -> None:
        """Run no-op tasks at once, join their outputs, and wait for the end."""
