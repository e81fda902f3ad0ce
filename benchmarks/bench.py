"""A run: its servers, the systems that take part, and how much is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from benchmarks.environment import Environment
from benchmarks.samples import Samples, alternate
from benchmarks.systems import SYSTEMS, System
from benchmarks.systems.system import RoundTrips

Size = TypeVar("Size", int, float)


@dataclass
class Bench:
    """What every workload needs.

    Attributes:
        environment: the servers and processes.
        quick: true for a run that ends within three minutes, with little precision.
        rounds: how often each measurement is repeated.
        chosen: the systems that take part if they are installed.
        left_out: systems that do not take part, with the reason.
    """

    environment: Environment
    quick: bool = False
    rounds: int = 3
    chosen: tuple[type[System], ...] = SYSTEMS
    left_out: dict[str, str] = field(default_factory=dict)
    _started: dict[type[System], System] = field(default_factory=dict)

    def size(self, full: Size, quick: Size) -> Size:
        """Return the size of a workload in this run."""
        return quick if self.quick else full

    def systems(self, *, able_to: type[System] = System) -> list[Any]:
        """Return the systems that can do this, started and warm."""
        able = [kind for kind in self.chosen if issubclass(kind, able_to)]
        new = [kind for kind in able if kind not in self._started and kind.name not in self.left_out]
        starting = [system for kind in new if (system := self._start(kind))]
        for system in starting:
            self._warm_up(system)
        ready = [self._started[kind] for kind in able if kind in self._started]
        if issubclass(able_to, RoundTrips):
            for system in ready:
                _read_old_notifications(system)
        return ready

    def measure(self, systems: Iterable[System], action: Callable[[Any], float]) -> dict[str, Samples]:
        """Measure these systems in alternating rounds."""
        return alternate(self.rounds, {system.name: partial(action, system) for system in systems})

    def _start(self, kind: type[System]) -> System | None:
        if not kind.is_installed():
            self._leave_out(kind, f"not installed (the module {kind.needs})")
            return None
        try:
            system = kind(self.environment)
            system.start()
        except Exception as error:
            self._leave_out(kind, f"did not start: {type(error).__name__}: {error}")
            return None
        return system

    def _warm_up(self, system: System) -> None:
        try:
            system.run(self.size(200, 20))
        except Exception as error:
            self._leave_out(type(system), f"did not run: {type(error).__name__}: {error}\n{system.output()}")
        else:
            self._started[type(system)] = system

    def _leave_out(self, kind: type[System], reason: str) -> None:
        self.left_out[kind.name] = reason.splitlines()[0]
        print(f"{kind.name} is left out: {reason}", file=sys.stderr)


def _read_old_notifications(system: RoundTrips) -> None:
    # A client of Celery is notified of every result, and reads them all when it waits for the next one.
    with suppress(Exception):  # the measurement reports the failure
        system.call()
