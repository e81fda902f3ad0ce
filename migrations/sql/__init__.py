"""SQL that a revision executes: table details, triggers and data. Functions are in `shared/tasks/sql`."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

FOLDER = Path(__file__).resolve().parent


def run_file(connection: Connection, name: str) -> None:
    """Execute the statements of a file in this folder."""
    statements = (FOLDER / name).read_text(encoding="utf-8")
    # psycopg treats a single % as the start of a parameter.
    connection.exec_driver_sql(statements.replace("%", "%%"))
