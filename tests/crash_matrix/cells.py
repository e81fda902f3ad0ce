"""From a recorded run to the cells of the matrix: every point that was come to, and every victim that makes sense."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from tests.crash_matrix.world import EFFECTS

Victim = Literal["child", "worker", "orchestrator", "frozen", "connection"]
KILLED: tuple[Victim, ...] = ("child", "worker", "orchestrator")
"""The others live on: who came to the point stands still for longer than a lease, or connections are cut."""
VICTIMS: tuple[Victim, ...] = (*KILLED, "frozen", "connection")


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a run.

    Attributes:
        agent: whose task; empty where the point is not about one.
        step: a tool's name, `model, step N`, `claim`, `dispatch` and so on.
        where: how far that is.
        nth: how often the run has come here.
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
    """A point that a run came to, and who came there: a worker's child, its main process, the orchestrator, or a
    server of the test's own; `working` says whether a child was at work on a task meanwhile.
    """

    point: Point
    source: str
    working: bool


@dataclass(frozen=True, slots=True)
class Strike:
    """Somebody to be killed at a point, or frozen there, or a connection to be cut."""

    point: Point
    victim: Victim


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: the strikes, one after the other."""

    strikes: tuple[Strike, ...]

    def __str__(self) -> str:
        return ", then ".join(f"{strike.victim} at {strike.point}" for strike in self.strikes) or "undisturbed"


def cells_of(trace: Iterable[Hit], before: tuple[Strike, ...] = ()) -> list[Cell]:
    """All cells of a recorded run, in its order.

    Args:
        before: what had been struck in that run before.
    """
    victims = KILLED if before else VICTIMS
    strikes = [Strike(hit.point, victim) for hit in trace for victim in victims if _makes_sense(hit, victim)]
    return [Cell((*before, strike)) for strike in strikes]


def recovery(trace: Sequence[Hit], strike: Strike) -> list[Hit]:
    """What a recorded run did because of a strike: from there until it comes to another step than the struck one."""
    begun = [hit.point for hit in trace].index(strike.point) + 1
    return list(takewhile(lambda hit: not _is_other_step(hit.point, strike.point), trace[begun:]))


def share_of(cells: Sequence[Cell], share: float, seed: int) -> list[Cell]:
    """Some of the cells, evenly spread over the run and over the victims."""
    chooser = random.Random(seed)
    ordered = sorted(range(len(cells)), key=lambda place: (cells[place].strikes[-1].victim, place))
    wanted = max(1, round(len(cells) * share))
    width = len(cells) / wanted
    chosen = {ordered[int(number * width + chooser.random() * width)] for number in range(wanted)}
    return [cells[place] for place in sorted(chosen)]


def _makes_sense(hit: Hit, victim: Victim) -> bool:
    """A child that has nothing to do is nobody's loss, and what the test does itself needs nobody else."""
    by_child = hit.source == "child" or (hit.source == "server" and hit.working)
    match victim:
        case "child":
            return by_child
        case "frozen":
            return by_child or hit.source == "orchestrator"
        case "connection":
            return hit.source != "test"
    return True


def _is_other_step(point: Point, struck: Point) -> bool:
    is_step = point.step in EFFECTS.get(point.agent, ()) or point.step.startswith("model")
    return is_step and (point.agent, point.step) != (struck.agent, struck.step)
