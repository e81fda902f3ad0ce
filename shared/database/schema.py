"""The schema: create it, bring it to this release, refuse to work on an older one.

Migrations are idempotent, and safe when two processes run them at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import OperationalError

from minions.backoff import jittered
from shared.database.connections import SCHEMA_LOCK, autocommit, be_patient, get_engine
from shared.database.sessions import wait_to_connect
from shared.database.tables import Base
from shared.errors import Conflict, NotConfigured
from shared.settings import Settings
from shared.tasks import sql

# Only migrations load Alembic: it takes a tenth of a second, and every process checks the schema at its start.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

# Seconds. Longer than `deadlock_timeout` (1 s by default), after which an autovacuum yields to us.
LOCK_TIMEOUT = 2.0
LOCK_PATIENCE = 60.0
INDEX_LOCK = SCHEMA_LOCK + 1


@contextmanager
def alembic_config() -> Iterator[Config]:
    """Yield Alembic's configuration for the migrations of this installation, wherever it is installed."""
    from alembic.config import Config

    with as_file(files("migrations")) as folder:
        config = Config()
        # configparser treats % as the start of a variable.
        config.set_main_option("script_location", str(Path(folder)).replace("%", "%%"))
        yield config


def migrate(engine: Engine, *, after: bool = False) -> tuple[str | None, str | None]:
    """Bring the schema to this release's revision, and the functions to those of this release, in one transaction.

    Each revision belongs to a phase. Those of "before" run before the new release starts, and leave a schema that the
    previous release still works on. Those of "after" take away what only the previous release used.

    Args:
        engine: the database.
        after: run the newest "after" revisions too. An empty database gets them at once.

    Returns:
        the revision before and the revision after; the same where nothing was to be done, or where a later release
        has brought it further.

    Raises:
        NotConfigured: the database cannot hold every text.
        Conflict: workers of a release are online that cannot run on the new schema, or others held a table for a
            minute.
    """
    with alembic_config() as config, engine.connect() as connection:
        _refuse_other_encodings(connection)
        _prepare_large_tables(engine, _pending(config, _revision(connection)))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": SCHEMA_LOCK})
        connection.commit()
        try:
            before = _revision(connection)
            if before is not None and before not in _known_revisions():
                return before, before
            target = "head" if after or before is None else _last_before(before)
            if before is not None:
                _refuse_old_workers(connection, _first_release(config, before, target))
            config.attributes["connection"] = connection
            _upgrade(connection, config, target, locked=before not in (None, target))
            return before, _revision(connection)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": SCHEMA_LOCK})
            connection.commit()


def _pending(config: Config, current: str | None) -> list[ModuleType]:
    """Return the revisions that have yet to run, the oldest first; none on an empty or a later schema."""
    if current is None or current not in _known_revisions():
        return []
    pending = _scripts(config).iterate_revisions("head", current)
    return [revision.module for revision in pending][::-1]


def _prepare_large_tables(engine: Engine, revisions: list[ModuleType]) -> None:
    """Add columns and build indexes while others read and write their tables; their revisions find them there.

    A revision may have `COLUMNS`, a nullable column by table, and `INDEXES`, a table with columns and a condition by
    name. It has a separate lock. A transaction that waited for the schema's lock would have to end before an index is
    complete, which would be a deadlock.
    """
    if not any(getattr(revision, "INDEXES", {}) for revision in revisions):
        return
    with autocommit(engine).connect() as connection:
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": INDEX_LOCK}):
            time.sleep(jittered(1.0, 0.8))
        connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_PATIENCE}s'")
        try:
            for revision in revisions:
                _add_columns(engine, getattr(revision, "COLUMNS", {}))
                for name, definition in getattr(revision, "INDEXES", {}).items():
                    # An earlier revision may have yet to create the table.
                    if connection.scalar(EXISTS, {"table": definition.partition(" ")[0]}):
                        _build_index(connection, name, definition)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            raise Conflict(_held(connection)) from None
        finally:
            connection.exec_driver_sql("RESET lock_timeout")
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": INDEX_LOCK})


def _add_columns(engine: Engine, columns: dict[str, str]) -> None:
    for table, column in columns.items():
        with engine.connect() as connection:
            _patiently(connection, partial(_add_column, connection, table, column), locked=True)


def _add_column(connection: Connection, table: str, column: str) -> None:
    with connection.begin():
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
        connection.exec_driver_sql(f"ALTER TABLE IF EXISTS {table} ADD COLUMN IF NOT EXISTS {column}")


def _build_index(connection: Connection, name: str, definition: str) -> None:
    valid = connection.scalar(IS_VALID, {"name": name})
    if valid is False:  # An attempt was interrupted.
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
    if not valid:
        connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


def _upgrade(connection: Connection, config: Config, target: str, *, locked: bool) -> None:
    """Run the revisions and replace the functions in one transaction; retry while others hold the tables."""
    _patiently(connection, partial(_upgrade_now, connection, config, target, locked=locked), locked=locked)


def _patiently(connection: Connection, change: Callable[[], None], *, locked: bool) -> None:
    """Make a change in one transaction; retry while others hold the tables."""
    give_up = time.monotonic() + LOCK_PATIENCE
    while True:
        last = time.monotonic() > give_up
        try:
            # While we wait for a lock, every later query waits too: a long transaction is not waited for.
            if last or not (locked and any(_is_long(holder) for holder in _holders(connection))):
                change()
                return
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                raise
            if last:
                raise Conflict(_held(connection)) from None
        time.sleep(jittered(1.0, 0.8))


def _is_long(holder: Row[Any]) -> bool:
    """An autovacuum yields to a waiting lock, so it is not long."""
    return bool(holder.seconds >= LOCK_TIMEOUT and holder.backend_type != "autovacuum worker")


def _upgrade_now(connection: Connection, config: Config, target: str, *, locked: bool) -> None:
    from alembic import command

    with connection.begin():
        be_patient(connection)
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'")
        if locked:
            _lock_tables(connection)
        command.upgrade(config, target)
        sql.create(connection)


def _lock_tables(connection: Connection) -> None:
    """Lock all tables before the first change, so that transactions that wait for us hold nothing that we need."""
    present = connection.scalars(OUR_TABLES, {"tables": list(Base.metadata.tables)}).all()
    connection.exec_driver_sql(f"LOCK TABLE {', '.join(present)} IN ACCESS EXCLUSIVE MODE")


def _holders(connection: Connection) -> Sequence[Row[Any]]:
    """Return other transactions that hold one of the tables, the longest first."""
    holders = connection.execute(HOLDERS, {"tables": list(Base.metadata.tables)}).all()
    connection.rollback()
    return holders


def _held(connection: Connection) -> str:
    holders = _holders(connection)
    named = "; ".join(f"process {h.pid} ({h.application}), for {h.seconds:.0f} s" for h in holders) or "none are left"
    return (
        f"Other transactions held the tables for {LOCK_PATIENCE:.0f} s, and nothing was changed. Open transactions: "
        f"{named}. End the long ones, for example with pg_terminate_backend, then run `minion migrate` again."
    )


OUR_TABLES = text(
    "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = current_schema() "
    "AND tablename = ANY(:tables) ORDER BY 1"
)
EXISTS = text("SELECT to_regclass(:table) IS NOT NULL")
REVISION = text("SELECT version_num FROM alembic_version")
NAME_AND_PHASE = re.compile(r'^revision = "(\w+)".*?^PHASE = "(\w+)"', re.MULTILINE | re.DOTALL)
IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
HOLDERS = text(
    """
    SELECT a.pid, COALESCE(NULLIF(a.application_name, ''), a.usename, a.backend_type) AS application,
           COALESCE(EXTRACT(epoch FROM clock_timestamp() - a.xact_start), 0)::float8 AS seconds, a.backend_type
        FROM pg_stat_activity a
        WHERE a.pid <> pg_backend_pid() AND a.datname = current_database() AND EXISTS (
            SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                WHERE l.pid = a.pid AND l.granted AND c.relname = ANY(:tables)
                  AND c.relnamespace = current_schema()::regnamespace)
        ORDER BY a.xact_start LIMIT 5
    """
)


def _refuse_other_encodings(connection: Connection) -> None:
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise NotConfigured(f"The database's encoding is {encoding}. Recreate it with ENCODING 'UTF8'.")


def _revision(connection: Connection) -> str | None:
    revision = _revision_within(connection)
    connection.rollback()
    return revision


def _revision_within(connection: Connection) -> str | None:
    """Return the schema's revision, in the caller's transaction."""
    known = connection.scalar(EXISTS, {"table": "alembic_version"})
    return connection.scalar(REVISION) if known else None


def _scripts(config: Config) -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config)


def _first_release(config: Config, current: str, target: str) -> str | None:
    """Return the first release whose workers can run on the target, if a revision on the path removes something."""
    pending = _scripts(config).iterate_revisions(target, current)
    return next((r.module.FIRST_RELEASE for r in pending if r.module.PHASE == "after"), None)


def _refuse_old_workers(connection: Connection, first: str | None) -> None:
    if first is None:
        return
    online = connection.execute(text("SELECT name, version FROM workers WHERE status = 'online' ORDER BY name")).all()
    connection.rollback()
    old = [f"{worker.name} ({worker.version})" for worker in online if _release(worker.version) < _release(first)]
    if old:
        raise Conflict(
            f"{len(old)} workers of a release before {first} are online: {', '.join(old[:10])}. Replace them with "
            f"release {first} or later, then run `minion migrate` again."
        )


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor: "0.2.1" is (0, 2). An invalid version counts as the first release."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _known_revisions() -> dict[str, str]:
    """Return the phase of each revision, from the newest to the oldest."""
    sources = [file for file in files("migrations").joinpath("versions").iterdir() if file.name.endswith(".py")]
    sources.sort(key=lambda file: file.name, reverse=True)
    return dict(NAME_AND_PHASE.findall("".join(file.read_text(encoding="utf-8") for file in sources)))


def _last_before(current: str | None = None) -> str:
    """Return the last revision of phase "before", or the current one if the schema is already further."""
    return next(name for name, phase in _known_revisions().items() if phase == "before" or name == current)


def check_schema_is_current(connection: Connection) -> None:
    """Raise NotConfigured if the schema is missing or older than this release; a newer one is fine."""
    current = _revision_within(connection)
    known, needed = list(_known_revisions()), _last_before()
    if current is None:
        raise NotConfigured("The database has no schema yet. Run `minion migrate`.")
    if current in known and known.index(current) > known.index(needed):
        raise NotConfigured(
            f"The database's schema is at {current}, this release needs {needed}. Run `minion migrate`."
        )
    installed = sql.installed(connection)
    if installed < sql.NUMBER:
        raise NotConfigured(
            f"The database has set {installed} of its functions, this release needs set {sql.NUMBER}. "
            "Run `minion migrate`."
        )


def wait_for_database(settings: Settings) -> None:
    """Wait until the database answers and has its schema.

    Raises:
        Unavailable: it does not answer.
        NotConfigured: it has no schema, or one that is older than this release.
    """
    wait_to_connect(settings)
    with get_engine().connect() as connection:
        check_schema_is_current(connection)
