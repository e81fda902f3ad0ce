"""Lists that fit a page: rows are left out before their names make it large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

MOST_BYTES = 40_000
"""Of the names that one list of a page shows."""

Row = TypeVar("Row")


def fitting(rows: Sequence[Row], names: Callable[[Row], Iterable[object]], most: int) -> Sequence[Row]:
    """Return the first rows whose names fit a page together, and at least one.

    Args:
        names: the names in a row, which users, models or tools chose.
        most: the largest number of rows.
    """
    left = MOST_BYTES
    for number, row in enumerate(rows[:most]):
        left -= sum(len(str(name).encode("utf-8", "replace")) for name in names(row))
        if left < 0:
            return rows[: max(number, 1)]
    return rows[:most]
