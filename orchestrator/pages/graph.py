"""The chain below a task as a graph, drawn as SVG: a box for the tasks of one agent, with their states and costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from markupsafe import Markup

from orchestrator.api.base_path import link
from orchestrator.pages.formats import money, number
from orchestrator.pages.rendering import tasks_where
from shared.contracts.visible_text import one_line
from shared.tasks.states import State

COLUMN = 250
ROW = 52
BOX = (210, 40)
LONGEST_NAME = 26
LONGEST_ABOUT = 32
# What a box of several tasks shows by its colour: the first of these that one of them has.
TELLING = (State.FAILED, State.EXPIRED, State.RUNNING, State.QUEUED, State.WAITING, State.PENDING, State.SCHEDULED)

Path = tuple[str, ...]
Place = tuple[float, float]


@dataclass(slots=True)
class Node:
    """The tasks of an agent that are reached by the same agents.

    Attributes:
        path: the agents from the first task down to these.
        first: the oldest of them.
        states: how many are in each state.
        address: the page of the task, or the list of all.
    """

    path: Path
    first: UUID
    states: dict[str, int] = field(default_factory=dict)
    cost_microdollars: int = 0
    address: str = ""

    @property
    def number(self) -> int:
        """The number of tasks."""
        return sum(self.states.values())

    @property
    def agent(self) -> str:
        """The agent of the tasks."""
        return self.path[-1] or "not routed"

    @property
    def state(self) -> str:
        """The state of the task; of several, the one to look at."""
        return next((state for state in TELLING if state in self.states), next(iter(self.states)))


def nodes_of(rows: Sequence[Mapping[str, Any]], task: Mapping[str, Any]) -> list[Node]:
    """Return the boxes of a graph, parents before their children.

    Args:
        rows: of `queries.group_tree`.
        task: the first task.
    """
    nodes: dict[Path, Node] = {}
    for row in rows:
        node = nodes.setdefault(tuple(row["path"]), Node(tuple(row["path"]), row["first"]))
        node.states[row["state"]] = row["number"]
        node.cost_microdollars += row["cost_microdollars"]
    for node in nodes.values():
        if node.number == 1 or not node.path[-1]:
            node.address = link(f"/tasks/{node.first}")
        else:
            node.address = tasks_where(task["namespace"], agent=node.path[-1], root=str(task["root_id"]))
    return [nodes[path] for path in _depth_first(nodes)]


def graph(nodes: Sequence[Node]) -> Markup:
    """Return the picture of the boxes, which come as from `nodes_of`."""
    places = _places(nodes)
    width = max(x for x, _ in places.values()) + BOX[0] + 4
    height = max(y for _, y in places.values()) + BOX[1] + 4
    edges = [_edge(places[node.path[:-1]], places[node.path]) for node in nodes if node.path[:-1] in places]
    boxes = [_box(node, places[node.path]) for node in nodes]
    label = f"Graph of {len(nodes)} agents. The list below has the same."
    return Markup('<svg class="graph" width="{}" height="{}" role="group" aria-label="{}">{}{}</svg>').format(
        round(width), round(height), label, Markup("").join(edges), Markup("").join(boxes)
    )


def _depth_first(nodes: Mapping[Path, Node]) -> list[Path]:
    """Return all paths, each before those below it, and siblings by age."""
    below: dict[Path | None, list[Path]] = defaultdict(list)
    for path in nodes:
        # The reader may not see what is between two tasks.
        below[path[:-1] if path[:-1] in nodes else None].append(path)
    order: list[Path] = []
    left = list(reversed(below[None]))
    while left:
        path = left.pop()
        order.append(path)
        left += reversed(below[path])
    return order


def _places(nodes: Sequence[Node]) -> dict[Path, Place]:
    """Return the upper left corner of each box: a column for each depth, a parent beside the first of its children."""
    places: dict[Path, Place] = {}
    begun: set[Path] = set()
    row = -1
    for node in nodes:
        depth = len(node.path) - len(nodes[0].path)
        parent = node.path[:-1]
        # The first child is in the row of its parent.
        row += parent not in places or parent in begun
        begun.add(parent)
        places[node.path] = (depth * COLUMN + 2, row * ROW + 2)
    return places


def _edge(parent: Place, child: Place) -> Markup:
    left, top = parent[0] + BOX[0], parent[1] + BOX[1] / 2
    right, bottom = child[0], child[1] + BOX[1] / 2
    middle = (left + right) / 2
    return Markup('<path class="edge" d="M{:.0f} {:.0f} C{:.0f} {:.0f} {:.0f} {:.0f} {:.0f} {:.0f}"/>').format(
        left, top, middle, top, middle, bottom, right, bottom
    )


def _box(node: Node, place: Place) -> Markup:
    name = one_line(node.agent)
    many = f" × {number(node.number)}" if node.number > 1 else ""
    counts = ", ".join(f"{number(count)} {state}" if many else state for state, count in node.states.items())
    about = f"{money(node.cost_microdollars)}, {counts}"
    return Markup(
        '<a href="{}" aria-label="{}"><title>{}</title><rect class="node {}" x="{:.0f}" y="{:.0f}" width="{}" '
        'height="{}" rx="6"/><text x="{:.0f}" y="{:.0f}">{}</text>'
        '<text class="soft" x="{:.0f}" y="{:.0f}">{}</text></a>'
    ).format(
        node.address, f"{name}{many}: {about}", f"{name}{many}: {about}", node.state, *place, *BOX,
        place[0] + 10, place[1] + 17, f"{_cut(name, LONGEST_NAME - len(many))}{many}",
        place[0] + 10, place[1] + 33, _cut(about, LONGEST_ABOUT),
    )  # fmt: skip


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
