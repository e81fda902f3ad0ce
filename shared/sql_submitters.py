"""Database roles that submit tasks by SQL, and their bounds, which `minion_submit` enforces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT
from sqlalchemy.exc import DBAPIError

from shared.access.scope import Scope
from shared.database.connections import is_transient, reason
from shared.database.tables import Base
from shared.errors import Conflict, InvalidInput, NotFound

LONGEST_BOUND = 100
LONGEST_NAME = 63  # bytes; PostgreSQL cuts off the rest
RELATIONS = (*Base.metadata.tables, "alembic_version", "task_overview")
"""All tables and views. The schema may hold an application's own tables too."""
FUNCTIONS = ("minion_submit", "minion_submit_json")

ROLE = text(
    """
    SELECT pg_has_role(r.oid, p.proowner, 'MEMBER') AS is_owner, current_schema() AS schema,
           has_schema_privilege(r.oid, current_schema(), 'CREATE') AS may_create, ARRAY(
               SELECT c.relname::text FROM pg_class c
                   WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY (:relations)
                     AND (has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
                          OR has_table_privilege(r.oid, c.oid, 'DELETE, TRUNCATE, TRIGGER')) ORDER BY 1) AS tables
        FROM pg_roles r, pg_proc p WHERE r.rolname = :role AND p.oid = 'minion_submit'::regproc
    """
).bindparams(bindparam("relations", type_=ARRAY(TEXT)))
BIND = text(
    "INSERT INTO sql_submitters (role, namespace, agents, tenant) VALUES (:role, :namespace, :agents, :tenant) "
    "ON CONFLICT (role) DO UPDATE SET namespace = EXCLUDED.namespace, agents = EXCLUDED.agents, "
    "tenant = EXCLUDED.tenant, created_at = now()"
).bindparams(bindparam("agents", type_=ARRAY(TEXT)))
BOUNDS = text("SELECT namespace, agents, tenant FROM sql_submitters WHERE role = :role")
UNBIND = text("DELETE FROM sql_submitters WHERE role = :role")
# Roles to which EXECUTE was granted without bounds, as in release 0.2, are listed too.
LIST = text(
    """
    WITH granted AS (
        SELECT DISTINCT r.rolname::text AS role
            FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
            WHERE p.pronamespace = current_schema()::regnamespace AND p.proname = ANY (:functions)
              AND a.grantee <> p.proowner
    )
    SELECT role, b.namespace, COALESCE(b.agents, '{}') AS agents, b.tenant, b.created_at,
           b.namespace IS NOT NULL AS bound, g.role IS NOT NULL AS may_submit
        FROM granted g FULL JOIN sql_submitters b USING (role) ORDER BY role
    """
).bindparams(bindparam("functions", type_=ARRAY(TEXT)))


@dataclass(frozen=True, slots=True)
class Granted:
    """The result of a grant.

    Attributes:
        created: the role is new; it has no password.
        before: its bounds before; None: it had none.
    """

    role: str
    created: bool
    before: dict[str, Any] | None


def grant(connection: Connection, role: str, scope: Scope) -> Granted:
    """Let a role submit tasks within bounds, and do nothing else. A role that does not exist is created.

    Args:
        scope: a namespace, and optionally agents and a tenant.

    Raises:
        InvalidInput: PostgreSQL does not accept the name, or the caller may not create or grant.
        Conflict: the role has rights with which no bounds would hold.
    """
    _check_name(role)
    _check_bounds(scope)
    asked = {"role": role, "relations": list(RELATIONS)}
    found = connection.execute(ROLE, asked).one_or_none()
    if found is None:
        _execute(connection, "CREATE ROLE {role} LOGIN", role)
    # A new role has the rights of PUBLIC.
    rights = found or connection.execute(ROLE, asked).one()
    _check_rights(role, rights)
    _execute(connection, "GRANT USAGE ON SCHEMA {schema} TO {role}", role, schema=rights.schema)
    _execute(connection, "GRANT EXECUTE ON FUNCTION {functions} TO {role}", role)
    before = _bounds_of(connection, role)
    values = {"role": role, "namespace": scope.namespace, "agents": list(scope.agents), "tenant": scope.tenant}
    connection.execute(BIND, values)
    return Granted(role, found is None, before)


def revoke(connection: Connection, role: str) -> dict[str, Any] | None:
    """Take the right to submit, and the bounds, from a role. The role stays. Return the bounds, if it had any.

    Raises:
        NotFound: it has none.
    """
    known = {each["role"]: each for each in list_submitters(connection)}
    if role not in known:
        raise NotFound(f"The role {role!r} may not submit tasks. `minion submitters` lists those that may.")
    if known[role]["may_submit"]:
        _execute(connection, "REVOKE EXECUTE ON FUNCTION {functions} FROM {role}", role)
    before = _bounds_of(connection, role)
    connection.execute(UNBIND, {"role": role})
    return before


def list_submitters(connection: Connection) -> list[dict[str, Any]]:
    """Return the roles that may submit by SQL, and their bounds; `bound` is false for those without."""
    return [dict(row) for row in connection.execute(LIST, {"functions": list(FUNCTIONS)}).mappings()]


def _bounds_of(connection: Connection, role: str) -> dict[str, Any] | None:
    found = connection.execute(BOUNDS, {"role": role}).mappings().one_or_none()
    return None if found is None else dict(found)


def _check_name(role: str) -> None:
    if not role or "\x00" in role or len(role.encode()) > LONGEST_NAME:
        raise InvalidInput(f"Invalid name of a role: it must have 1 to {LONGEST_NAME} bytes.")


def _check_bounds(scope: Scope) -> None:
    given = {
        "namespace": [scope.namespace],
        "agent": scope.agents,
        "tenant": [scope.tenant] if scope.tenant is not None else [],
    }
    for what, values in given.items():
        for value in values:
            if not value or "\x00" in value or len(value) > LONGEST_BOUND:
                raise InvalidInput(f"Invalid {what}: it must have 1 to {LONGEST_BOUND} characters.")


def _check_rights(role: str, rights: Row[Any]) -> None:
    if rights.is_owner:
        raise Conflict(
            f"The role {role!r} owns the tables of Minions, or may act as their owner, so no bounds can hold for it. "
            "Choose another role."
        )
    if rights.tables:
        tables = ", ".join(rights.tables)
        raise Conflict(
            f"The role {role!r} has rights on {tables}, so no bounds can hold for it. Revoke them first: "
            f"`REVOKE ALL ON {tables} FROM …`, also from PUBLIC and the roles that it is a member of."
        )
    if rights.may_create:
        raise Conflict(
            f"The role {role!r} may create functions in the schema {rights.schema}, which could run with the rights of "
            f"the owner, so no bounds can hold for it. Revoke that first: `REVOKE CREATE ON SCHEMA {rights.schema} "
            "FROM …`, also from PUBLIC and the roles that it is a member of."
        )


def _execute(connection: Connection, statement: str, role: str, **names: str) -> None:
    """Execute a statement with quoted names in its places: PostgreSQL accepts no parameters there."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    quoted = {name: quote(value) for name, value in {"role": role, **names}.items()}
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(statement.format(functions=", ".join(FUNCTIONS), **quoted))
    except DBAPIError as error:
        if is_transient(error):
            raise
        raise InvalidInput(
            f"PostgreSQL refuses it for the role {role!r}: {reason(error)}. If this connection may not create roles, "
            "let an administrator of the database create it first."
        ) from None
