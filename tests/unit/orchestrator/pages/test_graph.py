"""The picture of the chain below a task."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from typing import Any
from uuid import UUID

from orchestrator.pages.graph import BOX, COLUMN, graph, nodes_of

TASK = {"namespace": "default", "root_id": UUID(int=1)}


def row(path: str, state: str, number: int = 1, cost: int = 0, first: int = 1) -> dict[str, Any]:
    named = {"path": path.split("/"), "state": state, "number": number}
    return {**named, "first": UUID(int=first), "cost_microdollars": cost}


def drawn(*rows: dict[str, Any]) -> xml.Element:
    return xml.fromstring(graph(nodes_of(rows, TASK)))


def boxes(picture: xml.Element) -> list[tuple[float, float]]:
    return [(float(each.attrib["x"]), float(each.attrib["y"])) for each in picture.iter("rect")]


CHAIN = (
    row("audit", "running"),
    row("audit/list", "succeeded", first=2),
    row("audit/each", "succeeded", 90, 1_000_000, first=3),
    row("audit/each/inspect", "succeeded", 100, first=4),
    row("audit/each", "failed", 10, 500_000, first=5),
)


def test_tasks_of_an_agent_are_one_box() -> None:
    picture = drawn(*CHAIN)
    text = "".join(picture.itertext())
    assert "each × 100" in text
    assert "$1.50, 90 succeeded, 10 failed" in text
    assert [each.attrib["class"] for each in picture.iter("rect")] == [
        "node running",
        "node succeeded",
        "node failed",
        "node succeeded",
    ]
    links = [each.attrib["href"] for each in picture.iter("a")]
    assert links[:3] == [
        f"/tasks/{UUID(int=1)}",
        f"/tasks/{UUID(int=2)}",
        f"/tasks?q=agent%3Aeach%20root%3A{UUID(int=1)}",
    ]


def test_chain_reads_from_left_to_right() -> None:
    picture = drawn(*CHAIN)
    root, first, second, below = boxes(picture)
    assert root[1] == first[1] < second[1] == below[1]
    assert below[0] - second[0] == second[0] - root[0] == COLUMN > BOX[0]
    assert len(list(picture.iter("path"))) == 3


def test_agent_whose_caller_is_not_seen_has_no_edge() -> None:
    picture = drawn(row("a", "failed"), row("a/b/c", "failed", first=2))
    assert len(set(boxes(picture))) == 2
    assert not list(picture.iter("path"))


def test_names_cannot_leave_the_picture() -> None:
    picture = drawn(row("<b></b><script>\u202e" + "x" * 99, "failed"))
    assert {each.tag for each in picture.iter()} == {"svg", "a", "title", "rect", "text"}
