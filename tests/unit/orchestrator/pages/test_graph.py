"""The picture of a tree of tasks."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from typing import Any
from uuid import UUID

from orchestrator.pages.graph import BOX, COLUMN, graph


def task(number: int, parent: int | None, depth: int, agent: str = "a") -> dict[str, Any]:
    above = None if parent is None else UUID(int=parent)
    return {"id": UUID(int=number), "parent_id": above, "depth": depth, "agent": agent, "state": "failed"}


def boxes(picture: xml.Element) -> list[tuple[float, float]]:
    return [(float(each.attrib["x"]), float(each.attrib["y"])) for each in picture.iter("rect")]


def test_parent_is_in_the_middle_of_its_children() -> None:
    tree = [task(1, None, 0), task(2, 1, 1), task(3, 1, 1), task(4, 1, 1), task(5, 3, 2)]
    picture = xml.fromstring(graph(tree, {UUID(int=2): 1_500_000}))
    root, first, second, third, below = boxes(picture)
    assert first[1] < second[1] < third[1]
    assert root[1] == second[1] == below[1]
    assert below[0] - second[0] == second[0] - root[0] == COLUMN
    assert len(list(picture.iter("path"))) == 4
    assert "failed, $1.50" in "".join(picture.itertext())
    links = [each.attrib["href"] for each in picture.iter("a")]
    assert links[0] == f"/tasks/{UUID(int=1)}"


def test_task_whose_parent_is_not_seen_has_no_edge() -> None:
    picture = xml.fromstring(graph([task(1, None, 3), task(3, 2, 5)], {}))
    assert len(boxes(picture)) == 2
    assert not list(picture.iter("path"))


def test_boxes_do_not_overlap() -> None:
    tree = [task(1, None, 0)] + [task(number, 1 + (number > 6), 1 + (number > 6)) for number in range(2, 12)]
    tree = [each for each in tree if each["id"] != UUID(int=7)]
    places = boxes(xml.fromstring(graph(tree, {})))
    for index, (x, y) in enumerate(places):
        for other in places[index + 1 :]:
            assert abs(x - other[0]) >= BOX[0] or abs(y - other[1]) >= BOX[1]


def test_names_cannot_leave_the_picture() -> None:
    picture = xml.fromstring(graph([task(1, None, 0, "</svg><script>\u202e" + "x" * 99)], {}))
    assert {each.tag for each in picture.iter()} == {"svg", "a", "title", "rect", "text"}
