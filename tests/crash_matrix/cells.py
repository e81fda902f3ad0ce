"""From a recorded run to the cells of the matrix: every point that was reached, and every sensible victim."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from tests.crash_matrix.world import EFFECTS, PACKED

Victim = Literal["child", "lane", "worker", "orchestrator", "frozen", "connection"]
KILLED: tuple[Victim, ...] = ("child", "lane", "worker", "orchestrator")
"""`child` is the process at the point, a worker's lane or a slot; `lane` is the lane while a slot makes a call for it.

The others live on: the process at the point is frozen for longer than a lease, or connections are cut.
"""
VICTIMS: tuple[Victim, ...] = (*KILLED, "frozen", "connection")


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a run.

    Attributes:
        agent: the agent of the task; empty if the point does not belong to one.
        step: a tool's name, `model, step N`, `claim`, `dispatch` and so on.
        where: the progress of the step.
        nth: how often the run has reached this point.
    """

    agent: str
    step: str
    where: str
    nth: int = 1

    def __str__(self) -> str:
        again = f" ({self.nth})" if self.nth > 1 else ""
        return f"{self.agent or '–'} · {self.step}{again} · {self.where}"


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that a run reached, and the process at it: a worker's lane, slot or main process, the orchestrator, or a
    server of the test. `working` is true if a lane or a slot was at work on a task at that moment.
    """

    point: Point
    source: str
    working: bool


@dataclass(frozen=True, slots=True)
class Strike:
    """A process to be killed at a point, or frozen there, or a connection to be cut."""

    point: Point
    victim: Victim


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: its strikes, in order."""

    strikes: tuple[Strike, ...]

    def __str__(self) -> str:
        return ", then ".join(f"{strike.victim} at {strike.point}" for strike in self.strikes) or "undisturbed"


def cells_of(trace: Iterable[Hit], before: tuple[Strike, ...] = ()) -> list[Cell]:
    """Return all cells of a recorded run, in its order.

    Args:
        before: the earlier strikes in that run.
    """
    victims = KILLED if before else VICTIMS
    strikes = [Strike(hit.point, victim) for hit in trace for victim in victims if _makes_sense(hit, victim)]
    return [Cell((*before, strike)) for strike in strikes]


def recovery(trace: Sequence[Hit], strike: Strike) -> list[Hit]:
    """Return the hits after a strike in a recorded run, until the run reaches another step than the struck one."""
    begun = [hit.point for hit in trace].index(strike.point) + 1
    return list(takewhile(lambda hit: not _is_other_step(hit.point, strike.point), trace[begun:]))


def share_of(cells: Sequence[Cell], share: float, seed: int) -> list[Cell]:
    """Return some of the cells, evenly spread over the run; each victim and each progress of a step occurs."""
    chooser = random.Random(seed)
    ordered = sorted(range(len(cells)), key=lambda place: (cells[place].strikes[-1].victim, place))
    wanted = max(1, round(len(cells) * share))
    width = len(cells) / wanted
    chosen = {ordered[int(number * width + chooser.random() * width)] for number in range(wanted)}
    for feature in (_progress, _victim):
        for missing in sorted({feature(cell) for cell in cells} - {feature(cells[place]) for place in chosen}):
            chosen.add(chooser.choice([place for place, cell in enumerate(cells) if feature(cell) == missing]))
    return [cells[place] for place in sorted(chosen)]


def _progress(cell: Cell) -> str:
    return cell.strikes[-1].point.where


def _victim(cell: Cell) -> str:
    return cell.strikes[-1].victim


def _makes_sense(hit: Hit, victim: Victim) -> bool:
    """Return whether the strike can matter: not on an idle child, nor on others while the test itself acts."""
    by_child = hit.source in ("lane", "slot") or (hit.source == "server" and hit.working)
    match victim:
        case "child":
            return by_child
        case "lane":
            return hit.source == "slot" and hit.point.agent not in PACKED
        case "frozen":
            return by_child or hit.source == "orchestrator"
        case "connection":
            return hit.source != "test"
    return True


def _is_other_step(point: Point, struck: Point) -> bool:
    is_step = point.step in EFFECTS.get(point.agent, ()) or point.step.startswith("model")
    return is_step and (point.agent, point.step) != (struck.agent, struck.step)
