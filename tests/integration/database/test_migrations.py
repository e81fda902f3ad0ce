"""The schema: models and migrations agree, the database keeps the invariants, concurrent creation is safe."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Uuid, bindparam, create_engine, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session

from shared.contracts.documents import parse_definition
from shared.database import schema as database_schema
from shared.database.tables import Agent, Base
from shared.definitions import defaults
from shared.definitions.store import DefinitionStore
from shared.errors import Conflict, NotConfigured
from shared.registry import AgentRegistry
from shared.settings import Settings
from shared.tasks import lifecycle, sql
from shared.tasks.states import INITIAL, TRANSITIONS, State
from tests.conftest import Define
from tests.support import schema_dump
from tests.support.definitions import NOOP, agent_definition, function_definition
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import ROOT, wait_until

Facts = list[tuple[Any, ...]]

with database_schema.alembic_config() as _config:
    NEWEST = ScriptDirectory.from_config(_config).get_current_head()
BEFORE_18 = (ROOT / "shared/tasks/sql/foundation.sql").read_text()


def refused(engine: Engine, statement: str, **values: Any) -> str:
    """The constraint or message with which the database refuses a statement."""
    with pytest.raises(IntegrityError) as caught, engine.begin() as connection:
        connection.execute(text(statement), values)
    return str(caught.value.orig)


# ------------------------------------------------------------------------------------ models and migrations


def test_models_and_migrations_agree(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": Base.metadata}
        )
        assert compare_metadata(context, Base.metadata) == []


CONSTRAINTS = text(
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version' ORDER BY 1, 2"
)
INDEXES = text(
    "SELECT tablename, indexname, indexdef FROM pg_indexes "
    "WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2"
)


def test_none_is_sql_null_where_json_null_has_no_meaning() -> None:
    values = {"input", "output", "payload"}  # of tasks, steps, outcomes and signals: null is one like any other
    columns = [column for table in Base.metadata.tables.values() for column in table.columns if column.nullable]
    of_json = [column for column in columns if isinstance(column.type, JSONB) and column.name not in values]
    assert "agent_versions.input_schema" in map(str, of_json)
    assert [str(column) for column in of_json if not column.type.none_as_null] == []  # type: ignore[attr-defined]


def test_constraints_and_indexes_agree_too(database: Engine, empty_database: Engine) -> None:
    """Alembic compares no check constraints, no partial indexes and no names."""
    with empty_database.begin() as connection:
        connection.exec_driver_sql(BEFORE_18.replace("%", "%%"))
        Base.metadata.create_all(connection)

    def facts(engine: Engine) -> tuple[Facts, Facts]:
        with engine.connect() as connection:
            return [tuple(r) for r in connection.execute(CONSTRAINTS)], [tuple(r) for r in connection.execute(INDEXES)]

    assert facts(database) == facts(empty_database)


def test_schema_file_describes_a_fresh_database(empty_database: Engine) -> None:
    database_schema.migrate(empty_database)
    difference = schema_dump.difference(empty_database)
    assert not difference, f"migrations/schema.sql is out of date: run `make schema`.\n{difference}"


def test_foreign_keys_have_indexes_where_rows_are_deleted(database: Engine) -> None:
    """Deleting a task looks for the rows that hang on it."""
    unindexed = text(
        """
        SELECT c.conrelid::regclass::text || '.' || a.attname FROM pg_constraint c
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'f' AND c.confrelid = 'tasks'::regclass AND NOT EXISTS (
                SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1]) ORDER BY 1
        """
    )
    with database.connect() as connection:
        assert list(connection.scalars(unindexed)) == []


def test_check_at_the_start_knows_alembics_revisions() -> None:
    """It reads the files without loading them."""
    with database_schema.alembic_config() as config:
        revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    expected = [(each.revision, each.module.PHASE) for each in revisions]
    assert list(database_schema._known_revisions().items()) == expected


# ------------------------------------------------------------------------------------------ migrate and init

MIGRATE = (
    "from shared.database.connections import get_engine; from shared.database.schema import migrate; "
    "print(*migrate(get_engine()))"
)
INIT = (
    "from shared.database.connections import get_engine; from shared.definitions.defaults import init; "
    "print(len(init(get_engine())))"
)


def in_processes(engine: Engine, code: str, number: int) -> list[str]:
    """Run Python code in several processes at once, on this database; return the output of each."""
    env = {**os.environ, "DATABASE_URL": engine.url.render_as_string(hide_password=False)}

    def run(_: int) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(run, range(number)))


def test_processes_that_migrate_and_init_at_once_do_it_once(empty_database: Engine) -> None:
    assert sorted(in_processes(empty_database, MIGRATE, 3)) == [*[f"{NEWEST} {NEWEST}"] * 2, f"None {NEWEST}"]
    assert sorted(in_processes(empty_database, INIT, 3)) == ["0", "0", "3"]
    with empty_database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM agent_versions")) == 2
        assert connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0


def test_second_migration_changes_nothing(database: Engine) -> None:
    assert database_schema.migrate(database) == (NEWEST, NEWEST)
    assert [(c.kind, c.name, c.action) for c in defaults.init(database)] == [
        ("tool", "echo", "created"),
        ("agent", "assistant", "created"),
        ("agent", "echo", "created"),
    ]
    assert defaults.init(database) == []


def test_init_leaves_changed_defaults_alone(database: Engine) -> None:
    defaults.init(database)
    with Session(database) as session:
        AgentRegistry(session).register_agent(Agent(name="assistant", description="Mine"))
        assert defaults.init(database) == []
        assert AgentRegistry(session).get_agent("assistant").description == "Mine"


def test_init_is_not_misled_by_other_namespaces(database: Engine) -> None:
    with Session(database) as session:
        AgentRegistry(session, "other").register_agent(Agent(name="assistant", description="Theirs"))
    assert ("agent", "assistant") in {(change.kind, change.name) for change in defaults.init(database)}


def test_failed_migration_reports_cause_and_releases_lock(empty_database: Engine) -> None:
    with empty_database.begin() as connection:
        connection.execute(text("CREATE TABLE workers (id int)"))
    with pytest.raises(ProgrammingError, match='relation "workers" already exists'):
        database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0
        assert connection.scalar(text("SELECT to_regclass('tasks')")) is None
        connection.execute(text("DROP TABLE workers"))
    assert database_schema.migrate(empty_database) == (None, NEWEST)


@pytest.fixture
def previous_schema(empty_database: Engine) -> Engine:
    """A database as release 0.2 left it."""
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.commit()
    return empty_database


def waits_for_a_lock(engine: Engine) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return bool(connection.scalar(text(waiting)))


def test_a_migration_that_meets_a_deadlock_starts_again(previous_schema: Engine) -> None:
    with ThreadPoolExecutor(1) as threads, previous_schema.connect() as other:
        other.execute(text("LOCK TABLE workers IN ROW EXCLUSIVE MODE"))
        migration = threads.submit(database_schema.migrate, previous_schema)
        wait_until(lambda: waits_for_a_lock(previous_schema), "the migration waits for the table")
        other.execute(text("SELECT count(*) FROM tasks"))
        other.commit()
        assert migration.result() == ("0004", NEWEST)


def test_migration_locks_nothing_while_a_long_transaction_holds_a_table(
    previous_schema: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, attempts, ended = itertools.count(1), [], threading.Event()
    looked, holders, upgrade = threading.Event(), database_schema._holders, database_schema._upgrade_now

    def look(connection: Connection) -> Any:
        if next(looks) == 3:
            looked.set()
        return holders(connection)

    def attempt(*arguments: Any, **options: Any) -> None:
        attempts.append(ended.is_set())
        upgrade(*arguments, **options)

    monkeypatch.setattr(database_schema, "LOCK_TIMEOUT", 0.001)
    monkeypatch.setattr(database_schema, "_holders", look)
    monkeypatch.setattr(database_schema, "_upgrade_now", attempt)
    with ThreadPoolExecutor(1) as threads, previous_schema.connect() as other:
        other.execute(text("SELECT count(*) FROM tasks"))
        migration = threads.submit(database_schema.migrate, previous_schema)
        assert looked.wait(30)
        ended.set()
        other.rollback()
        monkeypatch.setattr(database_schema, "LOCK_TIMEOUT", 2.0)
        assert migration.result() == ("0004", NEWEST)
    assert attempts == [True]


@pytest.mark.parametrize(("backend", "long"), [("client backend", True), ("autovacuum worker", False)])
def test_migration_waits_for_an_autovacuum_alone(database: Engine, backend: str, long: bool) -> None:
    """It yields to a waiting lock, which a migration must therefore request."""
    with database.connect() as connection:
        holder = connection.execute(
            text("SELECT 60.0 AS seconds, :backend AS backend_type"), {"backend": backend}
        ).one()
    assert database_schema._is_long(holder) is long


def test_migration_may_idle_for_a_minute(empty_database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []
    create = sql.create

    def note(connection: Connection) -> None:
        allowed.append(connection.scalar(text("SHOW idle_in_transaction_session_timeout")))
        create(connection)

    monkeypatch.setattr(sql, "create", note)
    database_schema.migrate(empty_database)
    assert allowed == ["1min"]


def test_locked_table_is_named_with_its_holder(previous_schema: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_schema, "LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr(database_schema, "LOCK_PATIENCE", 0.1)
    with previous_schema.connect() as other:
        other.execute(text("SET application_name = 'report'"))
        pid = other.scalar(text("SELECT pg_backend_pid() FROM tasks RIGHT JOIN (SELECT 1) one ON true"))
        with pytest.raises(Conflict, match=rf"nothing was changed. Open transactions: process {pid} \(report\), for"):
            database_schema.migrate(previous_schema)
    assert database_schema.migrate(previous_schema) == ("0004", NEWEST)


VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('steps_open_idx')"


def test_indexes_are_built_while_others_write(previous_schema: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade, seen = database_schema._upgrade, []

    def look(connection: Connection, *arguments: Any, **options: Any) -> None:
        seen.append(connection.scalar(text(VALID)))
        connection.rollback()
        upgrade(connection, *arguments, **options)

    monkeypatch.setattr(database_schema, "_upgrade", look)
    assert database_schema.migrate(previous_schema) == ("0004", NEWEST)
    assert seen == [True]


def test_index_of_an_interrupted_migration_is_built_again(
    previous_schema: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_schema, "LOCK_PATIENCE", 0.1)
    with previous_schema.connect() as other:
        other.execute(text("LOCK TABLE steps IN ROW EXCLUSIVE MODE"))
        pid = other.scalar(text("SELECT pg_backend_pid()"))
        with pytest.raises(Conflict, match=rf"Open transactions: process {pid} "):
            database_schema.migrate(previous_schema)
    with previous_schema.connect() as connection:
        assert connection.scalar(text(VALID)) is False
    assert database_schema.migrate(previous_schema) == ("0004", NEWEST)
    with previous_schema.connect() as connection:
        assert connection.scalar(text(VALID)) is True


def test_concurrent_migrations_build_the_indexes_once(previous_schema: Engine) -> None:
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(database_schema.migrate, [previous_schema] * 3))
    assert sorted(results) == [("0004", NEWEST), (NEWEST, NEWEST), (NEWEST, NEWEST)]


SUBMIT_OF_0_1 = (
    "CREATE FUNCTION minion_submit(agent text, input jsonb DEFAULT NULL) RETURNS uuid LANGUAGE sql "
    "AS 'SELECT minion_uuidv7()'"
)


@pytest.mark.parametrize(("public", "grant"), [(True, False), (False, True), (True, True)])
def test_roles_that_could_submit_by_sql_may_still_do_so(empty_database: Engine, public: bool, grant: bool) -> None:
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.commit()
    with empty_database.begin() as connection:
        for role in ("a_writer", "granted", "stranger"):
            connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
            connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO a_writer"))
        if not public:
            connection.execute(text("REVOKE ALL ON FUNCTION minion_submit FROM PUBLIC"))
        if grant:
            connection.execute(text("GRANT EXECUTE ON FUNCTION minion_submit TO granted"))
    database_schema.migrate(empty_database)
    may = text("SELECT has_function_privilege(:role, oid, 'EXECUTE') FROM pg_proc WHERE proname = 'minion_submit'")
    with empty_database.begin() as connection:
        found = {role: connection.scalars(may, {"role": role}).one() for role in ("a_writer", "granted", "stranger")}
        assert found == {"a_writer": public, "granted": grant, "stranger": False}
        for role in found:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.mark.parametrize("public", [True, False])
def test_grants_to_submit_by_sql_survive_migration(empty_database: Engine, public: bool) -> None:
    may = "SELECT has_function_privilege('{}', oid, 'EXECUTE') FROM pg_proc WHERE proname = 'minion_submit'"
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text(SUBMIT_OF_0_1))
        connection.commit()
    with empty_database.begin() as connection:
        connection.execute(text('DROP ROLE IF EXISTS "a clerk"'))
        connection.execute(text("DROP ROLE IF EXISTS stranger"))
        connection.execute(text('CREATE ROLE "a clerk"'))
        connection.execute(text("CREATE ROLE stranger"))
        if not public:
            connection.execute(text("REVOKE ALL ON FUNCTION minion_submit FROM PUBLIC"))
            connection.execute(text('GRANT EXECUTE ON FUNCTION minion_submit TO "a clerk"'))
    database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        assert list(connection.scalars(text(may.format("a clerk")))) == [not public]
        # No role that has no rights on the tables could submit: the function now runs with its owner's.
        assert list(connection.scalars(text(may.format("stranger")))) == [False]
        connection.execute(text('DROP OWNED BY "a clerk"'))
        connection.execute(text('DROP ROLE "a clerk", stranger'))


CALLED_BY_0_1 = {
    "minion_claim": "t uuid, expected integer, w uuid",
    "minion_suspend": "t uuid, c integer, result jsonb, children jsonb",
}
CALLED_BY_0_2 = (
    "minion_claim(t uuid, expected integer, w uuid, granted boolean) RETURNS jsonb",
    "minion_suspend(t uuid, c integer, result jsonb, children jsonb, waits jsonb) RETURNS text",
)


@pytest.mark.parametrize("release", ["0.1", "0.2"])
def test_grants_survive_the_drop_of_a_function(empty_database: Engine, release: str) -> None:
    """From 0.2 the successors exist already, and any role may call them."""
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.commit()
    with empty_database.begin() as connection:
        connection.execute(text('DROP ROLE IF EXISTS "a clerk"'))
        connection.execute(text('CREATE ROLE "a clerk"'))
        for name, parameters in CALLED_BY_0_1.items():
            connection.execute(text(f"CREATE FUNCTION {name}({parameters}) RETURNS text LANGUAGE sql AS 'SELECT NULL'"))
            connection.execute(text(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC"))
            connection.execute(text(f'GRANT EXECUTE ON FUNCTION {name} TO "a clerk"'))
        for head in CALLED_BY_0_2 if release == "0.2" else ():
            connection.execute(text(f"CREATE FUNCTION {head} LANGUAGE plpgsql AS 'BEGIN END'"))
    database_schema.migrate(empty_database, after=True)
    acl = text(
        "SELECT proname, a.grantee::regrole::text AS role FROM pg_proc, aclexplode(proacl) a "
        "WHERE proname = ANY (:names) AND a.grantee <> proowner ORDER BY 1, 2"
    )
    with empty_database.begin() as connection:
        found = [tuple(row) for row in connection.execute(acl, {"names": list(CALLED_BY_0_1)})]
        connection.execute(text('DROP OWNED BY "a clerk"'))
        connection.execute(text('DROP ROLE "a clerk"'))
    public = ["-"] if release == "0.2" else []
    assert found == [(name, role) for name in CALLED_BY_0_1 for role in ('"a clerk"', *public)]


def test_tasks_of_previous_release_keep_conversation_order(empty_database: Engine) -> None:
    insert = text(
        """
        WITH made AS (SELECT minion_uuidv7() AS id), task AS (
            INSERT INTO tasks (id, origin_id, root_id, parent_id, parent_step, depth, conversation_id)
                SELECT id, id, COALESCE(:parent, id), :parent, CASE WHEN :parent IS NOT NULL THEN 1 END,
                       CASE WHEN :parent IS NULL THEN 0 ELSE 1 END, 'c'
                    FROM made)
        INSERT INTO task_status (task_id, state) SELECT id, 'pending' FROM made RETURNING task_id
        """
    ).bindparams(bindparam("parent", type_=Uuid()))
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        first = connection.scalar(insert, {"parent": None})
        child = connection.scalar(insert, {"parent": first})
        second = connection.scalar(insert, {"parent": None})
        connection.commit()
    database_schema.migrate(empty_database)
    predecessors = text("SELECT task_id, minion_predecessor(task_id, namespace, conversation_id) FROM task_status")
    with empty_database.connect() as connection:
        found = {row.task_id: row.minion_predecessor for row in connection.execute(predecessors)}
    assert found == {first: None, child: None, second: first}


PENDING = text(
    """
    WITH task AS (INSERT INTO tasks (id, origin_id, root_id, messages)
                      SELECT id, id, id, '[{"role": "user", "content": "noop"}]' FROM minion_uuidv7() AS id
                      RETURNING id)
    INSERT INTO task_status (task_id, state) SELECT id, 'pending' FROM task RETURNING task_id
    """
)


def test_revisions_run_one_at_a_time(empty_database: Engine) -> None:
    """Each is committed alone and keeps a pending task; then come the functions, as `migrate` creates them."""
    tasks: list[UUID] = []
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
        for revision in reversed(revisions):
            command.upgrade(config, revision)
            tasks.append(connection.execute(PENDING).scalar_one())
            connection.commit()
    assert database_schema.migrate(empty_database, after=True) == (revisions[0], revisions[0])
    assert schema_dump.difference(empty_database) == ""

    with Session(empty_database) as session, session.begin():
        store = DefinitionStore(session, validate_code=lambda function: None)
        store.apply([parse_definition(each) for each in (NOOP, agent_definition("Noop"))])
    driver = LifecycleDriver(empty_database)
    driver.finish(driver.run("Noop"))
    for task in tasks:
        driver.finish(task, driver.again(task))
    assert driver.sql("SELECT array_agg(DISTINCT state) FROM task_status") == ["succeeded"]
    assert driver.sql("SELECT count(*) FROM task_status") == len(tasks) + 1


def test_missing_or_old_schema_is_named(empty_database: Engine) -> None:
    with empty_database.connect() as connection, pytest.raises(NotConfigured, match="has no schema yet"):
        database_schema.check_schema_is_current(connection)
    database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        database_schema.check_schema_is_current(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        database_schema.check_schema_is_current(connection)
    assert database_schema.migrate(empty_database) == ("9999", "9999")


def test_missing_or_old_functions_are_named(empty_database: Engine) -> None:
    database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        connection.execute(text("DROP FUNCTION minion_functions()"))
        with pytest.raises(NotConfigured, match=f"set 0 of its functions, this release needs set {sql.NUMBER}"):
            database_schema.check_schema_is_current(connection)
    database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        database_schema.check_schema_is_current(connection)
        connection.execute(
            text("CREATE OR REPLACE FUNCTION minion_functions() RETURNS integer IMMUTABLE AS 'SELECT 999' LANGUAGE sql")
        )
        connection.execute(text("DROP FUNCTION minion_heal_turns"))
        connection.execute(text("CREATE OR REPLACE FUNCTION minion_parked() RETURNS bigint AS 'SELECT 7' LANGUAGE sql"))
    database_schema.migrate(empty_database)
    with empty_database.connect() as connection:
        database_schema.check_schema_is_current(connection)
        assert connection.scalar(text("SELECT minion_parked()")) == 7
        assert connection.scalar(text("SELECT to_regproc('minion_heal_turns')")) is None


def test_each_function_is_defined_once_and_its_body_is_valid(empty_database: Engine) -> None:
    files = [path.read_text() for path in sorted(sql.FOLDER.glob("*.sql"))]
    assert {path.stem for path in sql.FOLDER.glob("*.sql")} == {*sql.FOUNDATION, *sql.OTHERS}
    heads = [line.rstrip() for body in files for line in body.splitlines() if line.startswith("CREATE")]
    assert all(head.startswith("CREATE OR REPLACE FUNCTION minion_") for head in heads)
    database_schema.migrate(empty_database)
    with empty_database.begin() as connection:
        count = connection.scalar(text("SELECT count(*) FROM pg_proc WHERE proname ~ '^minion_'"))
        assert count == len(heads) + 1  # `minion_functions` says which set it is
        connection.exec_driver_sql("SET check_function_bodies = on")
        for body in files:
            connection.exec_driver_sql(body.replace("%", "%%"))


@pytest.mark.parametrize(("version", "refused"), [("0.1.9", True), ("0.2.0", False), ("0.3.0", False)])
def test_workers_that_cannot_run_on_the_new_schema_are_named(
    empty_database: Engine, version: str, refused: bool
) -> None:
    with database_schema.alembic_config() as config, empty_database.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        connection.execute(
            text(
                "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version) "
                "VALUES ('w', '{a}', 1, 'prefork', 'h', 1, :version)"
            ),
            {"version": version},
        )
        connection.commit()
    if refused:
        with pytest.raises(Conflict, match=r"1 workers of a release before 0.2 are online: w \(0.1.9\)"):
            database_schema.migrate(empty_database)
    else:
        assert database_schema.migrate(empty_database) == ("0003", NEWEST)


def test_alembics_own_command_line_finds_the_database(database: Engine, settings: Settings) -> None:
    with database_schema.alembic_config() as config:
        command.upgrade(config, "head")


# -------------------------------------------------------------------------------------------------- ids


@pytest.fixture
def older_server(empty_database: Engine) -> Engine:
    """A database with the `minion_uuidv7` of servers before PostgreSQL 18."""
    with empty_database.begin() as connection:
        connection.exec_driver_sql(BEFORE_18.replace("%", "%%"))
    return empty_database


def test_ids_of_older_servers_are_version_7_and_sort_by_time(older_server: Engine) -> None:
    make = text("SELECT minion_uuidv7() FROM generate_series(1, 20)")
    with older_server.connect() as connection:
        before = connection.scalar(text("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)"))
        batches = [list(connection.scalars(make)) for _ in range(50)]
        after = connection.scalar(text("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)"))
    ids: list[UUID] = [made for batch in batches for made in batch]
    assert {(made.version, made.variant) for made in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == len(ids)
    assert all(before <= made.int >> 80 <= after for made in ids)
    for earlier, later in pairwise(batches):
        assert max(earlier).int >> 64 <= min(later).int >> 64


def test_ids_of_this_server_are_version_7(database: Engine) -> None:
    with database.connect() as connection:
        assert connection.scalar(text("SELECT minion_uuidv7()")).version == 7


# ------------------------------------------------------------------------------------------- transitions


def test_transitions_agree_with_the_state_table(database: Engine) -> None:
    pairs = list(product(State, State))
    asked = text(
        "SELECT minion_transition_allowed(p.before, p.after) FROM unnest(CAST(:before AS text[]), "
        "CAST(:after AS text[])) WITH ORDINALITY AS p (before, after, n) ORDER BY p.n"
    )
    values = {"before": [before for before, _ in pairs], "after": [after for _, after in pairs]}
    with database.connect() as connection:
        answers = list(connection.scalars(asked, values))
    assert len(answers) == 81
    assert {pair for pair, allowed in zip(pairs, answers, strict=True) if allowed} == TRANSITIONS.keys()


# The other columns that a row in each state needs.
FITTING = {
    "scheduled": "due_at = now()",
    "running": "worker_id = (SELECT id FROM workers LIMIT 1), capability = 'work'",
    "waiting": "wait_reason = 'backoff', capability = 'work'",
    "queued": "capability = 'work'",
}


@pytest.mark.parametrize("before", State)
def test_the_trigger_refuses_forbidden_transitions(driver: LifecycleDriver, before: State) -> None:
    task = driver.submit()
    driver.sql("ALTER TABLE task_status DISABLE TRIGGER task_status_transition")
    driver.sql(f"UPDATE task_status SET state = '{before}', {FITTING.get(before, 'due_at = NULL')}")
    driver.sql("ALTER TABLE task_status ENABLE TRIGGER task_status_transition")
    clear = "worker_id = NULL, wait_reason = NULL, due_at = NULL"
    for after in State:
        if after == before or (before, after) in TRANSITIONS:
            continue
        fitting = FITTING.get(after, "claim = claim")
        kept = ", ".join(part for part in clear.split(", ") if part.split(" ")[0] not in fitting)
        message = refused(
            driver.engine,
            f"UPDATE task_status SET state = '{after}', {kept}, {fitting} WHERE task_id = :task",
            task=task,
        )
        assert f"a task cannot go from {before} to {after}" in message


@pytest.mark.parametrize("state", sorted(frozenset(State) - INITIAL))
def test_a_task_begins_as_scheduled_or_pending(driver: LifecycleDriver, state: State) -> None:
    task = driver.submit()
    driver.sql("DELETE FROM task_status")
    assert f"a task cannot begin as {state}" in refused(
        driver.engine, f"INSERT INTO task_status (task_id, state) VALUES (:task, '{state}')", task=task
    )


# -------------------------------------------------------------------------------------------- invariants


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("claim = -1", "must not decrease"),
        ("claim = 0", "must not decrease"),
        ("attempts = -1", "counters"),
        ("open_waits = -1", "open_waits"),
        ("open_waits = 1", "open_waits"),
        ("worker_id = NULL", "running_has_worker"),
        ("capability = NULL", "routed"),
        ("due_at = now()", "due"),
        ("wait_reason = 'x'", "waiting_has_reason"),
        ("priority = 101", "priority"),
        ("state = 'waiting', worker_id = NULL", "waiting_has_reason"),
        ("state = 'pending', worker_id = NULL, cancel_requested = true", "cancel_reaches_only_the_running"),
    ],
)
def test_a_status_row_is_never_at_odds_with_itself(driver: LifecycleDriver, change: str, constraint: str) -> None:
    driver.run()
    assert constraint in refused(driver.engine, f"UPDATE task_status SET {change}")


IMMUTABLE = {
    "agent_versions": [
        "checksum = 'x'",
        "definition = '{}'",
        "time_limit = 1",
        "function_version_id = NULL, number = 9",
    ],
    "tool_versions": ["definition = '{}'", "effect = 'unsafe'"],
    "function_versions": ["definition = '{}'", "checksum = 'x'", "number = 9"],
    "agent_version_tools": ["position = 9"],
    "relations": ["agent_name = 'B'", "for_each = 'x'"],
    "contents": ["value = '1'"],
    "task_outcomes": ["output = '1'", "state = 'failed', error = '{}'", "error_fingerprint = 'x'"],
    "tasks": [
        "input = '1'",
        "agent_name = 'B'",
        "agent_version_id = NULL",
        "key = 'x'",
        "namespace = 'x'",
        "deadline = now()",
        "replay_of = id",
        "origin_id = minion_uuidv7()",
        "journal_format = 2",
        "submitted_by = 'x'",
        "conversation_id = 'x'",
        "messages = '[]'",
        "capability = 'x'",
    ],
}


@pytest.mark.parametrize(("table", "change"), [(t, change) for t, changes in IMMUTABLE.items() for change in changes])
def test_rows_that_others_rely_on_never_change(
    driver: LifecycleDriver, define: Define, table: str, change: str
) -> None:
    define(
        function_definition(),
        {"kind": "tool", "name": "twice", "type": "function", "function": "double"},
        {"kind": "agent", "name": "Model", "tools": ["twice"]},
        {"kind": "agent", "name": "Chain", "type": "function", "relations": [{"agent": "A"}]},
    )
    driver.finish(driver.run(), output="x" * 70_000)
    assert f"a row of {table} must not change" in refused(driver.engine, f"UPDATE {table} SET {change}")


def test_a_functions_status_may_change(driver: LifecycleDriver, define: Define) -> None:
    define(function_definition())
    driver.sql("UPDATE function_versions SET status = 'quarantined', status_reason = 'It is evil.'")
    assert "status" in refused(driver.engine, "UPDATE function_versions SET status = 'bogus'")


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE agents SET status = 'bogus'", "agents_status_check"),
        ("UPDATE agents SET active_version_id = minion_uuidv7()", "agents_active_version_id_fkey"),
        ("INSERT INTO agents (name) VALUES ('A')", "agents_namespace_name_key"),
        ("INSERT INTO tasks (root_id, origin_id, labels) VALUES (minion_uuidv7(), minion_uuidv7(), '[]')", "labels"),
        ("INSERT INTO tasks (root_id, origin_id, depth) VALUES (minion_uuidv7(), minion_uuidv7(), -1)", "depth"),
        (
            "INSERT INTO tasks (root_id, origin_id, parent_id) SELECT id, id, id FROM tasks LIMIT 1",
            "tasks_parent_check",
        ),
        (
            "INSERT INTO steps (task_id, number, kind, name, status, request_hash, claim) "
            "SELECT id, 0, 'wait', 'x', 'started', 'h', 1 FROM tasks",
            "steps_number_check",
        ),
        ("DELETE FROM agent_versions", "fkey"),
        ("DELETE FROM workers", "fkey"),
    ],
)
def test_constraints_hold(driver: LifecycleDriver, statement: str, constraint: str) -> None:
    driver.run()
    assert constraint in refused(driver.engine, statement)


def test_a_task_succeeds_in_one_execution_only(driver: LifecycleDriver) -> None:
    task = driver.run()
    driver.finish(task)
    assert "executions_one_success_idx" in refused(
        driver.engine,
        "INSERT INTO executions (task_id, claim, worker_id, outcome) VALUES (:task, 2, :worker, 'succeeded')",
        task=task,
        worker=driver.worker,
    )


def test_deleting_task_deletes_all_its_rows(driver: LifecycleDriver) -> None:
    parent = driver.run(idempotency_key="k", conversation_id="c")
    [child] = driver.suspend(parent, children=["B"])
    driver.again(child)
    driver.finish(child)
    driver.finish(parent, driver.again(parent), messages=[{"role": "user", "content": "hello"}])
    driver.sql("DELETE FROM tasks WHERE id = :parent", parent=parent)
    for table in ("tasks", "task_status", "task_outcomes", "executions", "steps", "idempotency_keys"):
        assert driver.sql(f"SELECT count(*) FROM {table}") == 0
    assert driver.sql("SELECT count(*) FROM messages") == 1


def test_a_replayed_task_may_be_deleted(driver: LifecycleDriver) -> None:
    first = driver.run()
    driver.finish(first)
    again = driver.call(lifecycle.accept, [{"agent": "A", "input": 1, "replay_of": str(first)}])[0].task_id
    driver.sql("DELETE FROM tasks WHERE id = :first", first=first)
    row = driver.row(again)
    assert (row["replay_of"], row["origin_id"]) == (None, first)


def test_downgrade_below_first_schema_is_refused(database: Engine) -> None:
    with database_schema.alembic_config() as config, database.connect() as connection:
        config.attributes["connection"] = connection
        with pytest.raises(NotImplementedError, match="Restore a backup"):
            command.downgrade(config, "base")


def test_a_database_that_cannot_hold_every_text_is_refused(database: Engine) -> None:
    outside = database.execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"))
    engine = create_engine(database.url.set(database="ascii"), connect_args={"client_encoding": "utf8"})
    try:
        with pytest.raises(NotConfigured, match="ENCODING 'UTF8'"):
            database_schema.migrate(engine)
    finally:
        engine.dispose()
        with outside.connect() as connection:
            connection.execute(text("DROP DATABASE ascii"))
