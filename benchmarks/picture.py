"""The figures of a run as an SVG: a panel of bars for each table, readable on light and dark pages.

Written by hand, because the picture needs nothing but rectangles and texts, and one style sheet for both colour
schemes; plotting libraries fix the colours when they draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.report import PUBLISHED, number
from benchmarks.samples import Figures

WIDTH = 860
LABELS = 300  # x at which bars begin
BARS = 450  # length of the longest bar
ROW = 22
HEADER = 40
GAP = 18
OURS = "minions"

STYLE = """
svg { font: 13px system-ui, sans-serif; --text: #1f2328; --soft: #59636e; --ours: #0969da; --other: #afb8c1;
  --published: #dfe3e8; --line: #1f2328; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  svg { --text: #e6edf3; --soft: #9198a1; --ours: #4493f8; --other: #656c76; --published: #3d444d; --line: #e6edf3 }
}
text { fill: var(--text) } .title { font-weight: 600 } .soft { fill: var(--soft) } .label { text-anchor: end }
.ours { fill: var(--ours) } .other { fill: var(--other) } .published { fill: var(--published) }
.spread { stroke: var(--line); stroke-width: 1.5 }
"""


@dataclass(frozen=True)
class _Bar:
    label: str
    kind: str
    value: float
    lowest: float
    highest: float


def draw(tables: Iterable[Figures], caption: str) -> str:
    """Return an SVG document with one panel for each table; bars are medians, lines reach from lowest to highest."""
    parts: list[str] = []
    top = GAP
    for table in tables:
        bars = list(_bars(table))
        if bars:
            parts += _panel(table, bars, top)
            top += HEADER + ROW * len(bars) + GAP
    parts.append(f'<text class="soft" x="10" y="{top + 8}">{escape(caption)}</text>')
    height = top + GAP + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'role="img" aria-label="Benchmark figures">',
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _bars(table: Figures) -> Iterator[_Bar]:
    for name, samples in table.samples.items():
        if samples.values:
            kind = "ours" if name.startswith(OURS) else "other"
            yield _Bar(name, kind, samples.median, samples.lowest, samples.highest)
    for name, value in table.published.items():
        yield _Bar(name, "published", value, value, value)


def _panel(table: Figures, bars: list[_Bar], top: int) -> Iterator[str]:
    scale = BARS / max(bar.highest for bar in bars)
    direction = "more is better" if table.higher_is_better else "less is better"
    yield f'<text class="title" x="10" y="{top + 14}">{escape(table.title)}</text>'
    note = f"{table.unit}, {direction}" + (f"; pale: {PUBLISHED}" if table.published else "")
    yield f'<text class="soft" x="10" y="{top + 30}">{escape(note)}</text>'
    for index, bar in enumerate(bars):
        y = top + HEADER + ROW * index
        end = LABELS + bar.value * scale
        yield f'<text class="label" x="{LABELS - 8}" y="{y + 12}">{escape(bar.label)}</text>'
        yield f'<rect class="{bar.kind}" x="{LABELS}" y="{y}" width="{max(1.0, end - LABELS):.1f}" height="16" rx="2"/>'
        if bar.lowest < bar.highest:
            yield (
                f'<line class="spread" x1="{LABELS + bar.lowest * scale:.1f}" x2="{LABELS + bar.highest * scale:.1f}" '
                f'y1="{y + 8}" y2="{y + 8}"/>'
            )
        right = LABELS + max(bar.value, bar.highest) * scale
        yield f'<text x="{right + 6:.1f}" y="{y + 12}">{number(bar.value)}</text>'
