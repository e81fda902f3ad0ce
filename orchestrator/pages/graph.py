"""The tree of a task's sub-tasks as a graph, drawn as SVG: agents, states and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from markupsafe import Markup

from orchestrator.api.base_path import link
from orchestrator.pages.formats import money
from shared.contracts.visible_text import one_line

COLUMN = 240
ROW = 52
BOX = (200, 40)
LONGEST_NAME = 26

Place = tuple[float, float]


def graph(tasks: Sequence[Mapping[str, Any]], costs: Mapping[UUID, int]) -> Markup:
    """Return the picture.

    Args:
        tasks: the first task, and some of those below it, the oldest first.
        costs: microdollars by task.
    """
    places = _places(tasks)
    width = max(x for x, _ in places.values()) + BOX[0] + 10
    height = max(y for _, y in places.values()) + BOX[1] + 10
    edges = [_edge(places[task["parent_id"]], places[task["id"]]) for task in tasks if task["parent_id"] in places]
    boxes = [_box(task, places[task["id"]], costs.get(task["id"], 0)) for task in tasks]
    return Markup('<svg class="graph" width="{}" height="{}" role="group" aria-label="{}">{}{}</svg>').format(
        round(width), round(height), f"Graph of {len(tasks)} tasks. The list below has the same.",
        Markup("").join(edges), Markup("").join(boxes),
    )  # fmt: skip


def _places(tasks: Sequence[Mapping[str, Any]]) -> dict[UUID, Place]:
    """Return the upper left corner of each task: a column for each depth, a parent in the middle of its children."""
    known = {task["id"] for task in tasks}
    children: dict[UUID | None, list[UUID]] = defaultdict(list)
    for task in tasks:
        # The reader may not see what is between two tasks.
        children[task["parent_id"] if task["parent_id"] in known else None].append(task["id"])
    rows: dict[UUID, float] = {}
    free = 0
    # From the end, each task comes after its children.
    for id in reversed(_depth_first(children)):
        below = [rows[child] for child in children[id]]
        rows[id] = sum(below) / len(below) if below else free
        free += not below
    first = tasks[0]["depth"]
    # The oldest is at the top.
    return {
        task["id"]: ((task["depth"] - first) * COLUMN + 2, (free - 1 - rows[task["id"]]) * ROW + 2) for task in tasks
    }


def _depth_first(children: Mapping[UUID | None, list[UUID]]) -> list[UUID]:
    """Return all tasks, each before its children."""
    order: list[UUID] = []
    left = list(reversed(children[None]))
    while left:
        id = left.pop()
        order.append(id)
        left += reversed(children[id])
    return order


def _edge(parent: Place, child: Place) -> Markup:
    left, top = parent[0] + BOX[0], parent[1] + BOX[1] / 2
    right, bottom = child[0], child[1] + BOX[1] / 2
    middle = (left + right) / 2
    return Markup('<path class="edge" d="M{:.0f} {:.0f} C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}"/>').format(
        left, top, middle, top, middle, bottom, right, bottom
    )


def _box(task: Mapping[str, Any], place: Place, cost: int) -> Markup:
    name = one_line(task["agent"] or "not routed")
    shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    about = f"{task['state']}, {money(cost)}"
    return Markup(
        '<a href="{}" aria-label="{}"><title>{}</title><rect class="node {}" x="{:.0f}" y="{:.0f}" width="{}" '
        'height="{}" rx="6"/><text x="{:.0f}" y="{:.0f}">{}</text>'
        '<text class="soft" x="{:.0f}" y="{:.0f}">{}</text></a>'
    ).format(
        link(f"/tasks/{task['id']}"), f"{name}: {about}", name, task["state"], *place, *BOX,
        place[0] + 10, place[1] + 17, shown, place[0] + 10, place[1] + 33, about,
    )  # fmt: skip
