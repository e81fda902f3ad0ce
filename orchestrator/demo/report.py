"""The audit's report: one Markdown file and one HTML page, generated from the saved data.

All data come from other people's packages, so every value is escaped for its context.
"""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Audit = dict[str, Any]
Row = dict[str, Any]

DATA, MARKDOWN, HTML = "audit.json", "report.md", "report.html"

CATEGORIES = {
    "permissive": "permissive",
    "weak-copyleft": "weak copyleft",
    "strong-copyleft": "strong copyleft",
    "other": "other",
    "failed": "could not be judged",
}
COLUMNS = ("Distribution", "Version", "Licence", "Category", "MB", "Native files", "Note")
NO_COMMENTARY = "No language model commented on this audit; every sentence above is computed from the data."
DISCLAIMER = "This is what the packages say about themselves, sorted by a program. It is not legal advice."


def name_of(root_id: str) -> str:
    """Return the name of the report that belongs to a root task."""
    return f"audit-{root_id}"


def folder(data_dir: Path, name: str) -> Path:
    """Return the folder of a report's files.

    Raises:
        ValueError: `name_of` never returns such a name; it may come from a language model.
    """
    if not re.fullmatch(r"[A-Za-z0-9-]{1,80}", name):
        raise ValueError(f"{name!r} is not the name of a report.")
    return data_dir / "reports" / name


def markdown(audit: Audit, commentary: str = "") -> str:
    """Return the report as Markdown, findings first.

    Args:
        audit: the saved data: `{"title", "headline", "findings", "rows", "written_at", "environment"}`.
        commentary: plain paragraphs separated by blank lines; may be empty.
    """
    parts = [
        f"# {_md(audit['title'])}",
        _md(_made(audit)),
        "## Findings",
        "\n".join(f"{number}. {_md(finding)}" for number, finding in enumerate(audit["findings"], 1)),
        "## What it means",
        *[_md(paragraph) for paragraph in _paragraphs(commentary)],
        "## Totals",
        _md_table(("What", "Value"), _totals(audit["headline"])),
        "## Licences",
        _md_table(("Licence", "Distributions"), audit["headline"]["licences"].items()),
        *_md_rows("## Conflicts with a permissive policy", _conflicts(audit)),
        *_md_rows("## Could not be judged", _failures(audit)),
        *_md_rows("## All distributions", audit["rows"]),
        DISCLAIMER,
    ]
    return "\n\n".join(parts) + "\n"


def html(audit: Audit, commentary: str = "") -> str:
    """Return the report as one self-contained HTML page: no scripts, no fonts, no pictures.

    Args:
        audit: as for `markdown`.
        commentary: as for `markdown`.
    """
    title = _html(audit["title"])
    body = [
        f"<h1>{title}</h1>",
        f"<p>{_html(_made(audit))}</p>",
        "<h2>Findings</h2>",
        f"<ol>{''.join(f'<li>{_html(finding)}</li>' for finding in audit['findings'])}</ol>",
        "<h2>What it means</h2>",
        *[f"<p>{_html(paragraph)}</p>" for paragraph in _paragraphs(commentary)],
        "<h2>Totals</h2>",
        _html_table("Totals", ("What", "Value"), _totals(audit["headline"])),
        "<h2>Licences</h2>",
        _html_table("Most frequent licences", ("Licence", "Distributions"), audit["headline"]["licences"].items()),
        *_html_rows("Conflicts with a permissive policy", _conflicts(audit)),
        *_html_rows("Could not be judged", _failures(audit)),
        *_html_rows("All distributions", audit["rows"]),
        f"<footer><p>{DISCLAIMER}</p></footer>",
    ]
    return PAGE.replace("{title}", title).replace("{body}", "\n".join(body))


def _made(audit: Audit) -> str:
    return f"Report {audit['report']}, written at {audit['written_at']} with {audit['environment']}."


def _paragraphs(commentary: str) -> list[str]:
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", commentary)]
    return [paragraph for paragraph in paragraphs if paragraph] or [NO_COMMENTARY]


def _totals(headline: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("distributions", f"{headline['distributions']:,}"),
        *((CATEGORIES[name], f"{headline['categories'].get(name, 0):,}") for name in CATEGORIES),
        ("conflicts with a permissive policy", f"{headline['conflicts']:,}"),
        ("with native code", f"{headline['with_native_code']:,}"),
        ("files", f"{headline['files']:,}"),
        ("MB on disk", f"{headline['bytes'] / 1e6:,.1f}"),
    ]


def _conflicts(audit: Audit) -> list[Row]:
    return [row for row in audit["rows"] if row["category"] not in ("permissive", "failed")]


def _failures(audit: Audit) -> list[Row]:
    return [row for row in audit["rows"] if row["category"] == "failed"]


def _cells(row: Row) -> tuple[str, ...]:
    failed = row["category"] == "failed"
    sizes = ("", "") if failed else (f"{row['bytes'] / 1e6:.2f}", str(row["native"]))
    return (row["name"], row["version"], row["licence"], CATEGORIES[row["category"]], *sizes, row["note"])


def _md(value: Any) -> str:
    """Return a value on one line that Markdown displays unchanged."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", line)


def _md_table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = list(columns)
    lines = [header, ["---"] * len(header), *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md_rows(heading: str, rows: list[Row]) -> list[str]:
    return [heading, _md_table(COLUMNS, map(_cells, rows))] if rows else []


def _html(value: Any) -> str:
    return markup.escape(str(value), quote=True)


def _html_table(caption: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = "".join(f'<th scope="col">{_html(column)}</th>' for column in columns)
    body = "\n".join(_html_row([_html(cell) for cell in row]) for row in rows)
    # A wide table scrolls in its own box, which is reachable by keyboard through tabindex.
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{_html(caption)}"><table>'
        f"<caption>{_html(caption)}</caption><thead><tr>{header}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _html_row(cells: list[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _html_rows(heading: str, rows: list[Row]) -> list[str]:
    return [f"<h2>{_html(heading)}</h2>", _html_table(heading, COLUMNS, map(_cells, rows))] if rows else []


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --line: #d0d7de; --head: #f3f5f8; --focus: #0a58ca; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ee; --page: #14171c; --line: #3a414b; --head: #20252d; --focus: #8ab4ff; }
}
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem; color: var(--text); background: var(--page);
  font: 1rem/1.55 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; }
p, li { max-width: 50rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
.table:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .92rem; }
caption { text-align: left; padding: .3rem 0; }
th, td { padding: .3rem .7rem; border: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { background: var(--head); }
tbody th { font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
