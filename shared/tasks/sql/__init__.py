"""The functions of the database, in their current form and each defined once, in the topic files beside this module.

`shared/tasks/lifecycle.py` has a Python name for each function that our processes call. `create` replaces them all, in
the transaction of `minion migrate`; a revision in `migrations/versions` changes tables and data only.

`CONTRIBUTING.md` describes how to change a function. `migrations/schema.sql` shows the schema of a fresh database.

Lock order, everywhere: ancestors first, siblings by id; a task's row, then the rows of `limits` by scope and name, then
those of `budgets`, then those of `standing_usage` by budget. A function that ends a task locks its parent's status row,
then the task's own.

Errors of class MN are expected; `shared/database/connections.py` turns them into MinionErrors:

    MN001 unknown agent      MN002 unknown capability   MN003 ambiguous route   MN004 agent disabled
    MN005 idempotency key    MN006 too large            MN007 invalid input     MN008 no such task
    MN009 conflict           MN010 forbidden

Plans inside functions are cached for a session. A plan made while the tables are nearly empty scans them from end to
end, and still does after they have grown; so hot functions have `enable_seqscan` off in their header. The query of
`minion_take` takes longer to plan than to run.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, text

FOLDER = Path(__file__).resolve().parent

# Increased by every release that changes a file: an older release never overwrites a newer set.
NUMBER = 1

# The tables' defaults, generated columns and triggers call these, so they are created before the tables.
FOUNDATION = ("foundation", "invariants", "events", "conversations", "audit", "ends", "files")
OTHERS = (
    "canary",
    "accept",
    "submit",
    "replay",
    "turns",
    "limits",
    "dispatch",
    "claim",
    "stops",
    "journal",
    "budgets",
    "standing",
    "batches",
    "approvals",
    "remote_calls",
    "waits",
    "finish",
    "packs",
    "clock",
    "security",
    "traces",
)
NATIVE_UUIDV7 = (
    "CREATE OR REPLACE FUNCTION minion_uuidv7() RETURNS uuid LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT uuidv7()'"
)


def create_foundation(connection: Connection) -> None:
    """Create or replace the functions that tables need, in the caller's transaction."""
    # Used by `SET search_path FROM CURRENT`: our schema, and a caller's temporary tables only after it.
    connection.exec_driver_sql("SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)")
    # Functions may call others that come later, and refer to tables that do not exist yet.
    connection.exec_driver_sql("SET LOCAL check_function_bodies = off")
    for topic in FOUNDATION:
        _execute(connection, topic)
    if connection.dialect.server_version_info >= (18,):  # type: ignore[operator]
        connection.exec_driver_sql(NATIVE_UUIDV7)


def create(connection: Connection) -> None:
    """Create or replace all functions, in the caller's transaction, unless a later release has brought newer ones."""
    if installed(connection) > NUMBER:
        return
    create_foundation(connection)
    for topic in OTHERS:
        _execute(connection, topic)
    connection.exec_driver_sql(
        "CREATE OR REPLACE FUNCTION minion_functions() RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE "
        f"AS 'SELECT {NUMBER}'"
    )


def installed(connection: Connection) -> int:
    """Return the number of the installed set; 0 if there is none, or one of a release before 0.3."""
    if connection.scalar(text("SELECT to_regproc('minion_functions')")) is None:
        return 0
    return int(connection.scalar(text("SELECT minion_functions()")) or 0)


def recreate(connection: Connection, function: str, topic: str) -> None:
    """Drop a function and execute the file that defines it with other parameters; its grants are kept.

    Args:
        function: its name, or its signature, such as `minion_claim(uuid,integer,uuid)`, if the new function may already
            exist beside it. PUBLIC's right on the new function then stays as it is.
        topic: the file, without its extension.
    """
    name = function.partition("(")[0]
    before = connection.execute(DROPPED, {"function": function}).one_or_none()
    grants = connection.execute(GRANTS, {"function": before and before.oid}).all()
    if before is not None:
        connection.exec_driver_sql(f"DROP FUNCTION {before.signature}")
    replaced = connection.scalar(text("SELECT to_regproc(:name)"), {"name": name}) is None
    connection.exec_driver_sql("SET LOCAL check_function_bodies = off")
    _execute(connection, topic)
    # Without an ACL entry every role may execute it.
    if before is not None and before.changed:
        if replaced:
            connection.exec_driver_sql(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
        for grant in grants:
            connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {name} TO {grant.role}{grant.option}")


DROPPED = text(
    "SELECT oid, proacl IS NOT NULL AS changed, oid::regprocedure::text AS signature FROM pg_proc "
    "WHERE pronamespace = current_schema()::regnamespace "
    "AND CAST(:function AS text) IN (proname, oid::regprocedure::text)"
)
GRANTS = text(
    "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role, "
    "CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS option "
    "FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = CAST(:function AS oid) AND a.grantee <> p.proowner"
)


def _execute(connection: Connection, topic: str) -> None:
    statements = (FOLDER / f"{topic}.sql").read_text(encoding="utf-8")
    # psycopg treats a single % as the start of a parameter.
    connection.exec_driver_sql(statements.replace("%", "%%"))
