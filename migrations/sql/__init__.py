"""The functions of the database, in the files beside this one."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

FOLDER = Path(__file__).resolve().parent


def run_file(connection: Connection, name: str, **values: str) -> None:
    """Execute a file's statements.

    Args:
        name: of a file in this folder.
        values: what stands there for `{name}`.
    """
    statements = (FOLDER / name).read_text(encoding="utf-8")
    for key, value in values.items():
        statements = statements.replace("{" + key + "}", value)
    # psycopg reads a single % as the start of a parameter.
    connection.exec_driver_sql(statements.replace("%", "%%"))
