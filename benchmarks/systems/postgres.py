"""Questions to a system's own database."""

from __future__ import annotations

from typing import Any

import psycopg


def ask(address: str, query: str, *values: str) -> Any:
    """Return the first column of the first row, or None."""
    with psycopg.connect(address) as connection:
        row = connection.execute(query, values).fetchone()  # type: ignore[arg-type]
        return row and row[0]
