"""The picture of a task's time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.pages.timeline import FOLD_WIDTH, LEFT, WIDTH, Scale, timeline

BEGAN = datetime(2026, 11, 29, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def claim(begin: float, end: float | None, number: int = 1) -> dict[str, Any]:
    finished = None if end is None else at(end)
    return {"claim": number, "worker": "w", "outcome": "running", "started_at": at(begin), "finished_at": finished}


def step(number: int, kind: str, begin: float, end: float, name: str = "s", status: str = "finished") -> dict[str, Any]:
    times = {"started_at": at(begin), "finished_at": at(end)}
    return {"number": number, "kind": kind, "name": name, "status": status, **times}


def drawn(task_end: float, *marks: Any, window: Any = None) -> xml.Element:
    task = {"created_at": BEGAN, "finished_at": at(task_end)}
    claims = [mark for mark in marks if "claim" in mark]
    return xml.fromstring(timeline(task, claims, [mark for mark in marks if "claim" not in mark], zoom, window))


def zoom(begin: datetime, end: datetime) -> str:
    return f"{(begin - BEGAN).total_seconds():.2f} {(end - BEGAN).total_seconds():.2f}"


def bars(picture: xml.Element, kind: str) -> list[tuple[float, float]]:
    found = [each for each in picture.iter("rect") if each.get("class") in (f"bar {kind}", kind)]
    return [(float(each.attrib["x"]), float(each.attrib["x"]) + float(each.attrib["width"])) for each in found]


def test_task_that_has_not_run_has_no_picture() -> None:
    assert timeline({"created_at": BEGAN, "finished_at": None}, [], [], zoom) == ""


def test_bars_are_in_the_order_of_time() -> None:
    picture = drawn(10, claim(0, 10), step(1, "model_call", 1, 4), step(2, "tool_call", 5, 9, status="failed"))
    (whole,), (model,), (failed,) = bars(picture, "claim"), bars(picture, "model"), bars(picture, "failed")
    assert LEFT <= whole[0] < model[0] < model[1] < failed[0] < failed[1] < whole[1] <= WIDTH
    assert not bars(picture, "fold")


def test_idle_time_is_folded() -> None:
    """A wait of a day between two seconds of work: the work is most of the picture."""
    picture = drawn(86_402, claim(0, 1), step(1, "wait", 1, 86_401), claim(86_401, 86_402, 2))
    first, second = bars(picture, "claim")
    (fold,) = bars(picture, "fold")
    assert abs(fold[1] - fold[0] - FOLD_WIDTH) < 1
    assert first[1] - first[0] > 300
    assert second[1] - second[0] > 300
    assert "24 h" in "".join(picture.itertext()) or "1 d" in "".join(picture.itertext())


def test_wait_within_a_program_is_folded() -> None:
    program = {**step(1, "tool_call", 0.5, 86_401.5), "program": 1}
    picture = drawn(86_402, claim(0, 1), program, step(2, "wait", 1, 86_401), claim(86_401, 86_402, 2))
    assert len(bars(picture, "fold")) == len(bars(picture, "program")) == 1


def test_short_pause_is_not_folded() -> None:
    assert Scale(0, 10, [(0, 4), (5, 10)]).folds == []


def test_positions_never_leave_the_picture() -> None:
    scale = Scale(0, 0, [])
    assert LEFT <= scale.at(0) <= WIDTH
    assert scale.at(1e12) <= WIDTH


def test_names_cannot_leave_the_picture() -> None:
    name = '</text><script>alert(1)</script>\u202e"\x1b[31m' * 3
    picture = drawn(1, claim(0, 1), step(1, "tool_call", 0, 1, name))
    assert {each.tag for each in picture.iter()} <= {"svg", "a", "title", "text", "rect"}
    titles = [each.text or "" for each in picture.iter("title")]
    assert any("</text><script>" in title for title in titles)
    assert not re.search("[\x1b\u202e]", "".join(picture.itertext()))


def test_each_part_leads_to_its_zoom() -> None:
    picture = drawn(86_402, claim(0, 1), step(1, "wait", 1, 86_401), claim(86_401, 86_402, 2))
    addresses = [each.attrib["href"] for each in picture.iter("a")]
    assert addresses[0] == "-4319.00 90721.00", "the fold"
    assert addresses[1] == "-0.05 1.05", "the first claim"


def test_zoom_shows_a_part_without_folds() -> None:
    marks = claim(0, 1), step(1, "wait", 1, 86_401), claim(86_401, 86_402, 2)
    picture = drawn(86_402, *marks, window=(at(10), at(20)))
    assert (len(bars(picture, "claim")), len(bars(picture, "fold"))) == (0, 0)
    ((left, right),) = bars(picture, "wait")
    assert left == LEFT
    assert right > WIDTH - 20
    assert timeline({"created_at": BEGAN, "finished_at": at(1)}, [claim(0, 1)], [], zoom, (at(5), at(6))) == ""
