"""How many worker processes a capability needs, for autoscalers.

A worker's slots should be enough for what runs, and for the backlog within the wait that is wanted. Little's law: a slot
runs `wait / run time` tasks in that time. The number follows at once upwards. Downwards it follows only when much fewer
are enough, and by a fifth at most: work that comes in bursts then finds its workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWER = 0.6
"""The share of the present workers that must be enough before there are fewer."""
STEP = 0.8
"""The share of the present workers that remain at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The work of one capability.

    Attributes:
        backlog: tasks that could start: pending without another reason than slots, and queued.
        running: tasks that run now.
        run_seconds: mean run time of a claim.
        workers: live workers.
        slots: their slots.
    """

    backlog: int
    running: int
    run_seconds: float
    workers: int
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an operator wants.

    Attributes:
        wait_seconds: how long tasks may wait for a slot.
        slots_per_worker: of a new worker; those of the live ones count if there are some.
        least: the fewest workers, and `most` the most.
    """

    wait_seconds: float
    slots_per_worker: int
    least: int
    most: int


def desired(load: Load, wanted: Wanted) -> int:
    """Return the number of workers."""
    return min(max(_steady(_needed(load, wanted), load.workers), wanted.least), wanted.most)


def _needed(load: Load, wanted: Wanted) -> int:
    """Return the number that is enough for the work that there is now."""
    if load.backlog == 0 and load.running == 0:
        return 0
    per_slot = max(1.0, wanted.wait_seconds / max(load.run_seconds, 0.001))
    slots = load.running + load.backlog / per_slot
    each = load.slots / load.workers if load.workers else float(wanted.slots_per_worker)
    return max(1, math.ceil(slots / max(each, 1.0)))


def _steady(needed: int, present: int) -> int:
    """Return the needed number, or the present one while the difference is not worth a change."""
    if needed >= present:
        return needed
    if needed > FEWER * present and needed > 0:
        return present
    return max(needed, math.floor(STEP * present))
