"""What was measured: the values of each system in alternating rounds, and tables of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Samples:
    """One measure of one system: a value for each round, and what went wrong."""

    values: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The largest value."""
        return max(self.values)

    def take(self, measure: Callable[[], float]) -> None:
        """Add a value. A failure is kept, and ends the measurement of this system: its tasks may still be there."""
        if self.failures:
            return
        try:
            self.values.append(measure())
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Measure:
    """What a table shows.

    Attributes:
        name: of the table, unique in a run.
        title: what was measured.
        unit: of the values.
    """

    name: str
    title: str
    unit: str


@dataclass(frozen=True)
class Figures(Measure):
    """One measure of several systems, taken in the same rounds.

    Attributes:
        samples: by system.
        higher_is_better: true for rates, false for times.
        base: the system to which the others are compared, if there is one.
        published: values that others published, by system; measured on another machine.
        source: where these were published.
    """

    samples: Mapping[str, Samples]
    higher_is_better: bool = True
    base: str | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def ratio(self, system: str) -> float | None:
        """Return the median of a system divided by that of the base, or None if either has no value."""
        base, own = self.samples.get(self.base or ""), self.samples[system]
        if base is None or not base.values or not own.values:
            return None
        return own.median / base.median


TOTAL = "total"


@dataclass(frozen=True)
class Breakdown(Measure):
    """One measure in parts: rows of the same columns.

    Attributes:
        rows: values by column, by row.
    """

    rows: Mapping[str, Mapping[str, float]]

    @property
    def columns(self) -> list[str]:
        """All columns, in the order in which they first appear, and the total."""
        names = dict.fromkeys(column for row in self.rows.values() for column in row)
        return sorted(names, key=lambda name: name == TOTAL)


Table = Figures | Breakdown


def alternate(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, Samples]:
    """Measure all systems in each round, one after the other: the load of the machine is the same for all."""
    samples = {name: Samples() for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            samples[name].take(measure)
    return samples


def seconds(action: Callable[[], object]) -> float:
    """Return the duration of the action."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least the given share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
