"""A task's claims and steps over time, as SVG. Time in which nothing ran is folded, and each part leads to its zoom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from orchestrator.pages.formats import between, duration
from shared.contracts.visible_text import one_line

WIDTH = 1000.0
LEFT = 190.0
ROW = 22
FOLD_WIDTH = 26.0
LONGEST_NAME = 24
FOLDED_FROM = 0.08
"""Share of the busy time from which on an idle time is folded."""
SHORTEST_FOLD = 2.0
"""Seconds."""

MARGIN = 0.05
"""Share of the time of a bar that its zoom shows before and after it."""
SHORTEST_ZOOM = timedelta(milliseconds=10)

Mark = tuple[str, str, str, datetime, datetime]
"""The class, the text, the title, the beginning and the end of a bar."""
Window = tuple[datetime, datetime]
Zoom = Callable[[datetime, datetime], str]
"""Returns the address of the picture of a part of the time."""


@dataclass(frozen=True, slots=True)
class Fold:
    """An idle time that is drawn short."""

    begin: float
    end: float


class Scale:
    """Maps times to positions.

    Args:
        busy: seconds in which something ran, as (beginning, end), counted from any moment.
        folds: whether to fold idle times.
    """

    def __init__(self, begin: float, end: float, busy: Sequence[tuple[float, float]], *, folds: bool = True) -> None:
        gaps = list(_gaps(begin, end, busy)) if folds else []
        work = max(end - begin - sum(gap.end - gap.begin for gap in gaps), 1e-3)
        self.folds = [gap for gap in gaps if gap.end - gap.begin > max(SHORTEST_FOLD, FOLDED_FROM * work)]
        self._begin = begin
        shown = max(end - begin - sum(fold.end - fold.begin for fold in self.folds), 1e-3)
        self._per_second = (WIDTH - LEFT - 10 - FOLD_WIDTH * len(self.folds)) / shown

    def at(self, moment: float) -> float:
        """Return the position of a moment."""
        position, seconds = LEFT, moment - self._begin
        for fold in self.folds:
            if moment >= fold.end:
                seconds -= fold.end - fold.begin
                position += FOLD_WIDTH
            elif moment > fold.begin:
                share = (moment - fold.begin) / (fold.end - fold.begin)
                seconds -= moment - fold.begin
                position += FOLD_WIDTH * share
        return min(position + seconds * self._per_second, WIDTH - 4)


def timeline(
    task: dict[str, Any],
    executions: Sequence[dict[str, Any]],
    steps: Sequence[dict[str, Any]],
    zoom: Zoom,
    window: Window | None = None,
) -> Markup:
    """Return the picture; empty if nothing ran in its time.

    Args:
        zoom: the addresses that the parts of the picture lead to.
        window: the part of the time that is shown; None: all of it.
    """
    now = task["finished_at"] or datetime.now(UTC)
    claims = [_of_claim(each, now) for each in executions]
    marks = [*claims, *(_of_step(each, now) for each in steps)]
    if window is not None:
        marks = list(_within(marks, *window))
    if not marks:
        return Markup("")
    begin, end = window or (
        min(task["created_at"], *(mark[3] for mark in marks)),
        max(now, *(mark[4] for mark in marks)),
    )
    busy = [
        (mark[3].timestamp(), mark[4].timestamp()) for mark in marks if mark[0] not in ("wait", "subtask", "program")
    ]
    scale = Scale(begin.timestamp(), end.timestamp(), busy, folds=window is None)
    height = ROW * (len(marks) + 1)
    parts = [_fold(scale, fold, height, zoom) for fold in scale.folds]
    parts += [_bar(scale, index, mark, zoom) for index, mark in enumerate(marks)]
    label = f"Timeline: {len(marks)} claims and steps in {between(begin, end)}. The tables below have all."
    picture = Markup('<svg class="timeline" viewBox="0 0 {} {}" role="group" aria-label="{}">{}{}</svg>')
    return picture.format(int(WIDTH), height + 4, label, Markup("").join(parts), _axis(begin, end, height))


def _of_claim(claim: dict[str, Any], now: datetime) -> Mark:
    end = claim["finished_at"] or now
    title = f"Claim {claim['claim']} on {claim['worker']}: {claim['outcome']}, {between(claim['started_at'], end)}"
    return "claim", f"claim {claim['claim']}", title, claim["started_at"], max(end, claim["started_at"])


def _of_step(step: dict[str, Any], now: datetime) -> Mark:
    end = step["finished_at"] or now
    # A program is open while its calls wait.
    kind = "program" if step.get("program") == step["number"] else step["kind"].partition("_")[0]
    kind = "failed" if step["status"] == "failed" else kind
    title = (
        f"Step {step['number']}, {step['kind']} {step['name']}: {step['status']}, {between(step['started_at'], end)}"
    )
    return kind, f"{step['number']} {step['name']}", title, step["started_at"], max(end, step["started_at"])


def _within(marks: Sequence[Mark], begin: datetime, end: datetime) -> Iterator[Mark]:
    """Yield the parts of the marks that are between two moments."""
    for kind, text, title, begins, ends in marks:
        if begins <= end and ends >= begin:
            yield kind, text, title, max(begins, begin), min(ends, end)


def _around(begin: datetime, end: datetime) -> Window:
    margin = max((end - begin) * MARGIN, SHORTEST_ZOOM)
    return begin - margin, end + margin


def _bar(scale: Scale, index: int, mark: Mark, zoom: Zoom) -> Markup:
    kind, text, title, begin, end = mark
    left, right = scale.at(begin.timestamp()), scale.at(end.timestamp())
    top = index * ROW
    shown = one_line(text)
    shown = shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"
    return Markup(
        '<a href="{}" aria-label="{}"><title>{}</title><text x="0" y="{}">{}</text><rect class="{}" x="{:.1f}" y="{}" '
        'width="{:.1f}" height="{}" rx="2"/></a>'
    ).format(
        zoom(*_around(begin, end)), f"Zoom: {one_line(title)}", one_line(title), top + 15, shown, f"bar {kind}", left,
        top + 3, max(right - left, 2.0), ROW - 6,
    )  # fmt: skip


def _fold(scale: Scale, fold: Fold, height: int, zoom: Zoom) -> Markup:
    title = f"{duration(fold.end - fold.begin)} in which nothing ran"
    begin, end = (datetime.fromtimestamp(moment, UTC) for moment in (fold.begin, fold.end))
    return Markup(
        '<a href="{}" aria-label="{}"><title>{}</title><rect class="fold" x="{:.1f}" y="0" width="{}" height="{}"/></a>'
    ).format(zoom(*_around(begin, end)), f"Zoom: {title}", title, scale.at(fold.begin), int(FOLD_WIDTH), height - ROW)


def _axis(begin: datetime, end: datetime, height: int) -> Markup:
    first, last = (f"{moment.astimezone(UTC):%H:%M:%S} UTC" for moment in (begin, end))
    return Markup('<text x="{}" y="{}">{}</text><text class="end" x="{}" y="{}">{}</text>').format(
        int(LEFT), height, first, int(WIDTH - 4), height, last
    )


def _gaps(begin: float, end: float, busy: Sequence[tuple[float, float]]) -> Iterator[Fold]:
    """Yield the times between `begin` and `end` in which nothing ran."""
    joined = [(begin, begin), *sorted(busy), (end, end)]
    until = begin
    for (_, ends), (begins, _) in pairwise(joined):
        until = max(until, ends)
        if begins > until:
            yield Fold(until, begins)
