"""Tables as CSV for spreadsheets, which would run a cell that begins like a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV, as RFC 4180 has it. Texts that begin like a formula get an apostrophe before them."""
    written = StringIO()
    writer = csv.writer(written)
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return written.getvalue()


def _cell(value: Any) -> Any:
    # Spreadsheets ignore spaces before a formula.
    is_formula = isinstance(value, str) and value.lstrip(" ").startswith(FORMULAS)
    return f"'{value}" if is_formula else value
