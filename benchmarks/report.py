"""The tables of a run as text, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.samples import Breakdown, Figures, Table

PUBLISHED = "published, another machine"
FAILED = "failed"


@dataclass(frozen=True)
class Report:
    """A run.

    Attributes:
        machine: where and when it was measured.
        tables: what was measured.
        left_out: the systems that did not take part, with the reason.
        systems: what each system that took part keeps, and how it was set up.
    """

    machine: Mapping[str, Any]
    tables: Sequence[Table]
    left_out: Mapping[str, str] = field(default_factory=dict)
    systems: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def as_text(self) -> str:
        """Return all tables for a terminal."""
        parts = [machine_line(self.machine)]
        for table in self.tables:
            rows = table_rows(table)
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = ["  ".join(_aligned(cell, width, index) for index, (cell, width) in enumerate(
                zip(row, widths, strict=True))).rstrip() for row in rows]  # fmt: skip
            parts.append("\n".join([_title(table), *lines, *failures(table)]))
        parts += [f"{name} is left out: {reason}" for name, reason in self.left_out.items()]
        return "\n\n".join(parts) + "\n"

    def as_markdown(self) -> str:
        """Return all tables in Markdown."""
        parts = [f"{machine_line(self.machine)}."]
        for table in self.tables:
            parts.append(f"**{_title(table)}**\n\n{markdown(table_rows(table))}")
            parts += [f"{line}." for line in failures(table)]
            if isinstance(table, Figures) and table.source:
                parts.append(f"Published at {table.source}.")
        if self.systems:
            rows = [["system", "keeps", "set up"]]
            rows += [[name, about["keeps"], about["settings"]] for name, about in self.systems.items()]
            parts.append(f"**What each system keeps**\n\n{markdown(rows, cells='---')}")
        parts += [f"{name} is left out: {reason}." for name, reason in self.left_out.items()]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> str:
        """Return everything, with the value of every round."""
        return json.dumps(
            {
                "machine": self.machine,
                "tables": [table_json(table) for table in self.tables],
                "systems": self.systems,
                "left_out": self.left_out,
            },
            indent=2,
        )


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return one line about the machine and the run."""
    return (
        f"{machine['measured_at']}, minions {machine['minions']}: {machine['processors']} processors "
        f"({machine['processor']}), {machine['memory_gigabytes']} GB, {machine['system']}, Python {machine['python']}, "
        f"PostgreSQL {machine['PostgreSQL']}, Valkey {machine['Valkey']}; {machine['rounds']} rounds; "
        f"load {machine['load_before']} before the run"
    )


def table_rows(table: Table) -> list[list[str]]:
    """Return the cells of a table; the first row has the titles of the columns."""
    if isinstance(table, Breakdown):
        rows = [[name, *(number(row.get(column)) for column in table.columns)] for name, row in table.rows.items()]
        return [["", *table.columns], *rows]
    base = table.base if table.base in table.samples else None
    rows = [["", f"median ({table.unit})", "lowest", "highest", *([f"/ {base}"] if base else [])]]
    for name, samples in table.samples.items():
        if samples.values:
            cells = [number(samples.median), number(samples.lowest), number(samples.highest)]
            rows.append([name, *cells, *([number(table.ratio(name))] if base else [])])
        else:
            rows.append([name, FAILED, *[""] * (len(rows[0]) - 2)])
    for name, value in table.published.items():
        rows.append([f"{name} ({PUBLISHED})", number(value), *[""] * (len(rows[0]) - 2)])
    return rows


def table_json(table: Table) -> dict[str, Any]:
    """Return a table for programs."""
    about: dict[str, Any] = {"name": table.name, "title": table.title, "unit": table.unit}
    if isinstance(table, Breakdown):
        return {**about, "rows": {name: dict(row) for name, row in table.rows.items()}}
    return {
        **about,
        "higher_is_better": table.higher_is_better,
        "base": table.base,
        "rows": {
            name: {
                "values": samples.values,
                "failures": samples.failures,
                **({"median": samples.median, "ratio": table.ratio(name)} if samples.values else {}),
            }
            for name, samples in table.samples.items()
        },
        "published": dict(table.published),
        "source": table.source,
    }


def failures(table: Table) -> list[str]:
    """Return a line for each system that failed in a round."""
    if isinstance(table, Breakdown):
        return []
    return [
        f"{name} failed in round {len(samples.values) + 1}: {failure.splitlines()[0]}"
        for name, samples in table.samples.items()
        for failure in samples.failures
    ]


def number(value: float | None) -> str:
    """Return a number with two or three significant digits, or nothing."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def markdown(rows: Iterable[Sequence[str]], cells: str = "---:") -> str:
    """Return a Markdown table; the first row has the titles, and `cells` aligns all columns but the first."""
    first, *others = rows
    lines = [first, ["---"] + [cells] * (len(first) - 1), *others]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def _title(table: Table) -> str:
    return f"{table.title} ({table.unit})"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
