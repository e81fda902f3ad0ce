"""Charts: bars in proportion, and names that stay text."""

from __future__ import annotations

import re

from orchestrator.pages.charts import HEIGHT, Bar, bar_chart, meter


def test_bars_are_in_proportion_to_the_largest() -> None:
    drawn = bar_chart([Bar(5, "a"), Bar(10, "b", is_odd=True), Bar(None, "c"), Bar(0, "d")], "label")
    assert re.findall(r' height="([0-9.]+)"', drawn) == [f"{HEIGHT / 2:.1f}", f"{HEIGHT:.1f}", "0.0", "0.0"]
    assert drawn.count('class="odd"') == 1


def test_titles_are_text() -> None:
    drawn = bar_chart([Bar(1, "<script>")], '"><script>')
    assert "<script>" not in drawn
    assert meter(2.0) == meter(1.0)


def test_chart_without_bars_is_empty() -> None:
    assert "<rect" not in bar_chart([], "label")
