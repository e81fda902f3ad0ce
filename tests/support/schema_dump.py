"""The schema of a database as text, grouped by table; `make schema` writes that of a fresh one to its file."""

from __future__ import annotations

import re
from difflib import unified_diff

from sqlalchemy import Engine, create_engine

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.database.schema import migrate
from tests.support.postgres_programs import run_program
from tests.support.processes import ROOT

FILE = ROOT / "migrations" / "schema.sql"
HEADER = """\
-- The schema of a fresh database, to read: tables with their constraints, indexes and triggers, then the functions.
-- `make schema` generates this file with pg_dump; `minion migrate` does not use it. On servers before PostgreSQL 18
-- minion_uuidv7() is as in shared/tasks/sql/foundation.sql.
"""
ENTRY = re.compile(r"^--\n-- Name: (?P<name>.+); Type: (?P<type>[A-Z ]+); Schema: .*\n--\n", re.MULTILINE)
TABLE = re.compile(r"^(CREATE TABLE \w+ \(\n)(.*?)(\n\))", re.MULTILINE | re.DOTALL)
END = "\n--\n-- PostgreSQL database dump complete"


def schema_of(engine: Engine) -> str:
    """Return everything that the schema `public` has: each table with what belongs to it, then each function.

    Nothing in it depends on the server's or pg_dump's release, on who owns the objects, or on the order of creation.
    """
    dump, _, _ = _dump(engine).partition(END)
    _, *parts = ENTRY.split(dump)
    groups: dict[tuple[bool, str], str] = {}
    for name, kind, statement in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        # A statement first names the table or function that it belongs to. pg_dump orders those of one.
        owner = re.search(r"\bpublic\.(\w+)", statement)
        assert owner, statement
        group = (kind == "FUNCTION" or name.startswith("FUNCTION "), owner[1])
        groups[group] = groups.get(group, "") + f"{statement.strip()}\n"
    return "\n".join((HEADER, *(groups[group] for group in sorted(groups)))).replace("public.", "")


def tables_of(engine: Engine) -> str:
    """Return the part of the schema before the functions."""
    return schema_of(engine).partition("\nCREATE FUNCTION ")[0]


def difference(engine: Engine) -> str:
    """Return how the schema differs from the file, as a unified diff; empty where it does not.

    Columns have no order: an upgrade adds some before the revisions of releases in between run.
    """
    bodies = (_by_column(FILE.read_text(encoding="utf-8")), _by_column(schema_of(engine)))
    lines = [body.splitlines(keepends=True) for body in bodies]
    return "".join(unified_diff(*lines, "migrations/schema.sql", "the database", n=1))


def _by_column(schema: str) -> str:
    """Return the schema with the columns of each table sorted by name."""
    return TABLE.sub(lambda table: table[1] + ",\n".join(sorted(table[2].split(",\n"))) + table[3], schema)


def _dump(engine: Engine) -> str:
    options = ("--schema-only", "--no-owner", "--no-tablespaces", "--no-table-access-method")
    return run_program(engine, "pg_dump", *options)


def main() -> None:
    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers:
        engine = create_engine(servers.start().database_url)
        migrate(engine)
        FILE.write_text(schema_of(engine), encoding="utf-8")
        engine.dispose()


if __name__ == "__main__":
    main()
