"""Database roles that submit by SQL within bounds: `minion grant-submit`, and what `minion_submit` makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.orm import Session

from orchestrator import cli
from shared import sql_submitters
from shared.access.scope import Scope
from shared.audit.log import AuditFilter, list_rows
from shared.contracts.documents import parse_definition
from shared.database import schema
from shared.database.connections import EXPECTED, transaction
from shared.database.tables import Base
from shared.definitions.store import DefinitionStore
from shared.errors import Conflict, Forbidden, InvalidInput, MinionError, NotFound
from shared.tasks.queries import get_task
from tests.integration.api.test_approval_policies import waits_for_a_lock
from tests.integration.conftest import Tasks
from tests.integration.tasks.test_submit_sql import submit
from tests.support.definitions import NOOP, agent_definition
from tests.support.processes import wait_until

Login = Callable[..., psycopg.Connection[Any]]
ROLES = ("shop", "worker_of_shop", "other_shop", "everyone", "legacy", "wrapper", "bob")
BOUNDS = Scope(namespace="team", tenant="acme", agents=("Open",))


@pytest.fixture
def login(database: Engine) -> Iterator[Login]:
    """Connections as another role: `login("shop")`."""
    for namespace in ("default", "team"):
        store(database, namespace, NOOP, agent_definition("Open"), agent_definition("Other"))
    address = make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as stack:

        def connect(role: str | None = None) -> psycopg.Connection[Any]:
            connection = stack.enter_context(psycopg.connect(address, autocommit=True))
            if role is not None:
                connection.execute(f"SET SESSION AUTHORIZATION {role}")  # type: ignore[arg-type]
            return connection

        yield connect
    with psycopg.connect(address, autocommit=True) as owner:
        owner.execute("DROP FUNCTION IF EXISTS wrapped")
        for role in ROLES:
            if owner.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchone() is not None:
                owner.execute(f"DROP OWNED BY {role}")  # type: ignore[arg-type]
                owner.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def store(database: Engine, namespace: str, *definitions: dict[str, Any]) -> None:
    with Session(database) as session, session.begin():
        store = DefinitionStore(session, lambda function: None, namespace)
        store.apply([parse_definition(definition) for definition in definitions])


def grant(role: str = "shop", scope: Scope = BOUNDS) -> sql_submitters.Granted:
    with transaction() as connection:
        return sql_submitters.grant(connection, role, scope)


def revoke(role: str) -> None:
    with transaction() as connection:
        sql_submitters.revoke(connection, role)


def listed() -> dict[str, Any]:
    with transaction() as connection:
        return {row["role"]: row for row in sql_submitters.list_submitters(connection)}


@contextmanager
def refused(kind: type[MinionError], match: str) -> Iterator[None]:
    with pytest.raises(psycopg.Error, match=match) as caught:
        yield
    assert EXPECTED[str(caught.value.sqlstate)] is kind


def row_of(tasks: Tasks, task: UUID) -> dict[str, Any]:
    with tasks.engine.connect() as connection:
        return get_task(connection, task)


def test_bounds_are_implied(login: Login, tasks: Tasks) -> None:
    assert grant().created
    shop = login("shop")
    row = row_of(tasks, submit(shop, agent=None, input={}, conversation_id="chat", idempotency_key="k", unique_key="u"))
    assert (row["namespace"], row["agent"], row["key"], row["submitted_by"]) == ("team", "Open", "acme", "sql:shop")
    assert row["conversation_id"] == "acme\x1fchat"
    by_json = shop.execute("SELECT minion_submit_json('Open', '{}', namespace => 'team')").fetchone()
    assert by_json is not None
    assert row_of(tasks, by_json[0])["key"] == "acme"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"namespace": "default"}, "to the namespace 'team' only"),
        ({"agent": "Other"}, "only to: Open"),
        ({"key": "acme2"}, "`key` must be 'acme'"),
        ({"key": "acme\x1f"}, "`key` must be 'acme'"),
    ],
)
def test_request_out_of_bounds_is_refused(login: Login, tasks: Tasks, fields: dict[str, Any], match: str) -> None:
    grant()
    shop = login("shop")
    for function in ("minion_submit", "minion_submit_json"):
        with refused(Forbidden, match):
            call(shop, function, **{"agent": "Open", "input": "{}", **fields})
    assert tasks.count() == {}


def call(connection: psycopg.Connection[Any], function: str, **fields: Any) -> UUID:
    cast = "::jsonb" if function == "minion_submit" else "::json"
    named = ", ".join(f"{name} => %({name})s{cast if name == 'input' else ''}" for name in fields)
    row = connection.execute(f"SELECT {function}({named})", fields).fetchone()  # type: ignore[arg-type]
    assert row is not None
    task: UUID = row[0]
    return task


@pytest.mark.parametrize("tenant", ["acme:*", "acme:1"])
def test_tenants_share_no_names(login: Login, tasks: Tasks, tenant: str) -> None:
    grant(scope=Scope(namespace="team", tenant=tenant))
    owner, shop = login(), login("shop")
    names = {"idempotency_key": "k", "unique_key": "u", "conversation_id": "c"}
    theirs = submit(owner, agent="Open", input={}, namespace="team", key="acme:2", **names)
    ours = submit(shop, agent="Open", input={}, key="acme:1", **names)
    assert ours != theirs
    assert submit(shop, agent="Open", input={}, key="acme:1", **names) == ours
    for name in names:
        with refused(InvalidInput, "U\\+001F"):
            submit(shop, agent="Open", input={}, key="acme:1", **{name: "2\x1fk"})
        with refused(InvalidInput, "too long"):
            submit(shop, agent="Open", input={}, key="acme:1", **{name: "k" * 250})
    if tenant.endswith("*"):
        with refused(Forbidden, "must begin with 'acme:'"):
            submit(shop, agent="Open", input={})


def test_other_agents_tasks_are_neither_joined_nor_named(login: Login, tasks: Tasks) -> None:
    grant(scope=Scope(namespace="team", agents=("Open",)))
    owner, shop = login(), login("shop")
    names = {"idempotency_key": "k", "unique_key": "u", "conversation_id": "c"}
    theirs = submit(owner, agent="Other", input={}, namespace="team", **names)
    for name, value in names.items():
        for given in ({}, {"x": 1}):
            with pytest.raises(psycopg.Error) as caught:
                submit(shop, agent="Open", input=given, **{name: value})
            assert EXPECTED[str(caught.value.sqlstate)] is Conflict
            assert str(theirs) not in str(caught.value)
    ours = submit(shop, agent="Open", input={}, idempotency_key="mine", conversation_id="own")
    assert submit(shop, agent="Open", input={}, idempotency_key="mine", conversation_id="own") == ours


def test_unique_key_that_is_taken_during_the_call_is_not_joined(login: Login, tasks: Tasks) -> None:
    grant(scope=Scope(namespace="team", agents=("Open",)))
    owner, shop = login(), login("shop")
    with ThreadPoolExecutor() as threads:
        with owner.transaction():
            submit(owner, agent="Other", input={}, namespace="team", unique_key="k")
            ours = threads.submit(submit, shop, agent="Open", input={}, unique_key="k")
            wait_until(lambda: waits_for_a_lock(tasks.engine), "the call waits for the other one")
        with refused(Conflict, "of an agent that this submitter may not use"):
            ours.result()


def test_no_setting_of_the_caller_changes_the_bounds(login: Login, tasks: Tasks) -> None:
    grant()
    shop = login("shop")
    shop.execute("CREATE TEMPORARY TABLE sql_submitters (role text, namespace text, agents text[], tenant text)")
    for setting in (
        "SET search_path = pg_temp, public",
        "SET session_replication_role = replica",
        "SET minion.namespace = 'default'",
        "SET ROLE NONE",
        "SET ROLE shop",
        "RESET ALL",
        "SET standard_conforming_strings = off",
    ):
        try:
            shop.execute(setting)
        except psycopg.errors.InsufficientPrivilege:
            continue
        with refused(Forbidden, "namespace"):
            shop.execute("SELECT public.minion_submit('Open', namespace => 'default')")
    for role in ("minions", "legacy"):
        with pytest.raises(psycopg.Error):
            shop.execute(f"SET ROLE {role}")  # type: ignore[arg-type]


def test_members_have_the_bounds_of_their_role(login: Login, tasks: Tasks) -> None:
    grant()
    owner = login()
    owner.execute("CREATE ROLE worker_of_shop NOINHERIT LOGIN IN ROLE shop")
    member = login("worker_of_shop")
    member.execute("SET ROLE shop")
    with refused(Forbidden, "namespace"):
        submit(member, agent="Open", namespace="default")
    member.execute("RESET ROLE")
    owner.execute("ALTER ROLE worker_of_shop INHERIT")
    owner.execute("GRANT shop TO worker_of_shop WITH INHERIT TRUE")
    with refused(Forbidden, "namespace"):
        submit(member, agent="Open", namespace="default")
    assert row_of(tasks, submit(member, agent="Open"))["submitted_by"] == "sql:worker_of_shop"
    grant("other_shop", Scope(namespace="default"))
    owner.execute("GRANT other_shop TO worker_of_shop")
    with refused(Forbidden, "several roles that may submit tasks: other_shop, shop"):
        submit(member, agent="Open")
    member.execute("SET ROLE other_shop")
    assert row_of(tasks, submit(member, agent="Open"))["namespace"] == "default"


def test_grants_of_release_0_2_stay_without_bounds(login: Login, tasks: Tasks) -> None:
    owner = login()
    owner.execute("CREATE ROLE legacy LOGIN")
    owner.execute("GRANT EXECUTE ON FUNCTION minion_submit TO legacy")
    grant()
    assert row_of(tasks, submit(login("legacy"), agent="Other", key="x"))["namespace"] == "default"
    rows = listed()
    assert (rows["legacy"]["bound"], rows["shop"]["bound"]) == (False, True)
    owner.execute("GRANT shop TO legacy")
    assert row_of(tasks, submit(login("legacy"), agent="Other", key="x"))["namespace"] == "default"


def test_functions_of_bound_roles_do_not_lend_their_right(login: Login, tasks: Tasks) -> None:
    """A role without EXECUTE calls a SECURITY DEFINER function whose owner is bound: the bounds would not be known."""
    grant()
    owner = login()
    owner.execute("CREATE ROLE bob LOGIN")
    owner.execute(
        "CREATE FUNCTION wrapped() RETURNS uuid LANGUAGE sql SECURITY DEFINER AS "
        "$$ SELECT minion_submit('Other', namespace => 'default') $$"
    )
    owner.execute("ALTER FUNCTION wrapped OWNER TO shop")
    with refused(Forbidden, "The role bob may not submit tasks. `minion grant-submit bob`"):
        login("bob").execute("SELECT wrapped()")
    assert tasks.count() == {}


def test_role_may_do_nothing_else(login: Login) -> None:
    grant()
    shop = login("shop")
    for statement in (
        "SELECT * FROM tasks",
        "SELECT * FROM sql_submitters",
        "INSERT INTO sql_submitters VALUES ('shop', 'default')",
        'SELECT minion_accept(\'{"agent": "Other"}\')',
        'SELECT minion_accept_bounded(\'{"agent": "Other"}\')',
        "SELECT minion_decide(gen_random_uuid(), 1, 'approve', NULL, NULL, 'x')",
        "CREATE TABLE mine (x int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            shop.execute(statement)  # type: ignore[arg-type]


def test_second_grant_replaces_the_bounds_and_revocation_ends_them(login: Login, tasks: Tasks) -> None:
    grant()
    assert not grant(scope=Scope(namespace="default")).created
    shop = login("shop")
    assert row_of(tasks, submit(shop, agent="Other"))["namespace"] == "default"
    revoke("shop")
    assert "shop" not in listed()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        submit(shop, agent="Other")
    with pytest.raises(NotFound, match="`minion submitters` lists"):
        revoke("shop")


def test_all_tables_and_views_are_protected(database: Engine) -> None:
    found = inspect(database)
    assert set(sql_submitters.RELATIONS) == {*Base.metadata.tables, *found.get_view_names(), "alembic_version"}


@pytest.mark.parametrize(
    "right", ["SELECT ON steps", "SELECT ON task_outcomes", "INSERT (name) ON signals", "TRIGGER ON tasks"]
)
def test_role_with_rights_on_a_table_is_refused(login: Login, right: str) -> None:
    owner = login()
    owner.execute("CREATE ROLE shop LOGIN")
    owner.execute(f"GRANT {right} TO shop")  # type: ignore[arg-type]
    with pytest.raises(Conflict, match=f"has rights on {right.split()[-1]}, so no bounds can hold"):
        grant()
    assert listed() == {}


@pytest.mark.parametrize("exists", [True, False])
def test_role_that_may_create_functions_is_refused(login: Login, exists: bool) -> None:
    """As in databases that were created before PostgreSQL 15. Its functions could shadow those of the owner."""
    owner = login()
    if exists:
        owner.execute("CREATE ROLE shop LOGIN")
    owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    try:
        with pytest.raises(Conflict, match="may create functions in the schema public"):
            grant()
    finally:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    assert listed() == {}


def test_role_may_have_rights_on_tables_of_an_application(login: Login) -> None:
    owner = login()
    owner.execute("CREATE ROLE shop LOGIN")
    owner.execute("CREATE TABLE IF NOT EXISTS orders (id int)")
    try:
        owner.execute("GRANT ALL ON orders TO shop")
        assert not grant().created
    finally:
        owner.execute("DROP TABLE orders")


def test_role_of_the_owner_is_refused(login: Login) -> None:
    with pytest.raises(Conflict, match="may act as their owner"):
        grant("minions")
    assert listed() == {}


@pytest.mark.parametrize(
    ("role", "scope"),
    [
        ("", BOUNDS),
        ("x" * 64, BOUNDS),
        ("public", BOUNDS),
        ("pg_shop", BOUNDS),
        ("shop", Scope(namespace="")),
        ("shop", Scope(namespace="team", tenant="")),
        ("shop", Scope(namespace="team", agents=("",))),
        ("shop", Scope(namespace="t" * 101)),
    ],
)
def test_invalid_grant_is_refused(login: Login, role: str, scope: Scope) -> None:
    with pytest.raises(InvalidInput):
        grant(role, scope)
    assert listed() == {}


def test_commands_are_in_the_audit_log(
    login: Login, database: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["minion", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return "".join(capsys.readouterr())

    bounds = ("--namespace", "team", "--tenant", "acme", "--agent", "Open")
    granted = " ".join(run("grant-submit", "shop", *bounds).split())
    assert "shop may submit tasks by SQL: namespace team, agent Open, tenant acme." in granted
    assert "has no password" in granted
    assert "tenant acme" in run("submitters")
    assert '"role": "shop"' in run("submitters", "--json")
    assert "may no longer submit" in run("revoke-submit", "shop")
    assert "No role may submit by SQL" in run("submitters")
    with database.connect() as connection:
        rows = list_rows(connection, AuditFilter(act="submitter"), limit=10)
    assert [(row["act"], row["target"], row["namespace"]) for row in rows] == [
        ("submitter.revoke", "shop", "team"),
        ("submitter.grant", "shop", "team"),
    ]
    assert rows[0]["before"] == {"namespace": "team", "agents": ["Open"], "tenant": "acme"}


def test_name_of_a_role_is_quoted(login: Login, database: Engine) -> None:
    name = 'shop %s {role}"; DROP TABLE tasks; --'
    try:
        assert grant(name).created
        assert listed()[name]["namespace"] == "team"
    finally:
        with database.begin() as connection:
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            connection.exec_driver_sql(f"DROP OWNED BY {quoted}")
            connection.exec_driver_sql(f"DROP ROLE {quoted}")


def test_owner_needs_not_be_a_superuser(database: Engine, new_database: Callable[..., Engine]) -> None:
    """As on managed PostgreSQL: the owner of the database migrates, creates a role and binds it."""
    new_database("managed")
    address = make_url(database.url).set(database="managed")
    engine = create_engine(address)
    event.listen(engine, "connect", become_the_owner)
    with database.execution_options(isolation_level="AUTOCOMMIT").connect() as outside:
        outside.execute(text("DROP ROLE IF EXISTS managed_owner"))
        outside.execute(text("CREATE ROLE managed_owner LOGIN CREATEROLE NOSUPERUSER"))
        outside.execute(text("ALTER DATABASE managed OWNER TO managed_owner"))
        try:
            schema.migrate(engine)
            store(engine, "team", NOOP, agent_definition("Open"))
            with engine.begin() as connection:
                assert sql_submitters.grant(connection, "managed_shop", BOUNDS).created
                assert connection.scalar(text("SELECT minion_submit('Open', namespace => 'team', key => 'x')"))
            plain = address.set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(plain, autocommit=True) as shop:
                shop.execute("SET SESSION AUTHORIZATION managed_shop")
                with refused(Forbidden, "namespace"):
                    submit(shop, agent="Open", namespace="default")
                assert submit(shop, agent="Open")
            with engine.begin() as connection:
                sql_submitters.revoke(connection, "managed_shop")
        finally:
            engine.dispose()
            outside.execute(text("ALTER DATABASE managed OWNER TO CURRENT_USER"))
            for role in ("managed_shop", "managed_owner"):
                with create_engine(address).begin() as connection:
                    connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
                outside.execute(text(f"DROP ROLE {role}"))


def become_the_owner(connection: psycopg.Connection[Any], record: Any) -> None:
    connection.execute("SET SESSION AUTHORIZATION managed_owner")
    connection.commit()
