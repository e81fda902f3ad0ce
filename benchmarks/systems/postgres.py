"""Questions to a system's own database."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import psycopg


class Database:
    """One open connection: a new one for each question would cost the server more than the question."""

    def __init__(self, address: str) -> None:
        self.address = address

    @cached_property
    def _connection(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.address, autocommit=True)

    def ask(self, query: str, *values: str) -> Any:
        """Return the first column of the first row, or None."""
        row = self._connection.execute(query, values).fetchone()  # type: ignore[arg-type]
        return row and row[0]
