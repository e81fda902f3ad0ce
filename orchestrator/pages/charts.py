"""Charts as SVG. A table beside each has the same values as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 720, 160
GAP = 0.2
"""The share of a bar's place that is left free."""
SHORTEST = 1.5
METER = 100


class Bar(NamedTuple):
    """A value over time.

    Attributes:
        value: None: unknown, which looks like 0.
        title: the text of the bar, with its time and value.
        is_odd: it deviates from what was expected.
    """

    value: float | None
    title: str
    is_odd: bool = False


def bar_chart(bars: Sequence[Bar], label: str) -> Markup:
    """Return a chart with a bar for each value."""
    most, place = max([bar.value or 0 for bar in bars] + [1e-9]), WIDTH / max(len(bars), 1)
    drawn = [_bar(bar, index * place, place, HEIGHT * (bar.value or 0) / most) for index, bar in enumerate(bars)]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, label, Markup("").join(drawn))


def meter(share: float) -> Markup:
    """Return a bar for a share of the largest value of a column. The value itself is beside it."""
    return Markup(
        '<svg class="meter" viewBox="0 0 {} 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="{:.1f}" height="8"/></svg>'
    ).format(METER, METER * min(max(share, 0.0), 1.0))


def _bar(bar: Bar, left: float, place: float, height: float) -> Markup:
    shown = max(height, SHORTEST) if bar.value else 0
    return Markup('<rect{} x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>').format(
        Markup(' class="odd"') if bar.is_odd else "", left, HEIGHT - shown, place * (1 - GAP), shown, bar.title
    )
