"""Schema creation and the default agents. Both are idempotent, and safe when two processes run them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import Session

from shared import __version__
from shared.errors import Conflict, NotConfigured
from shared.models import Agent, Function, Tool

if TYPE_CHECKING:
    from shared.definitions import Change

# One number for everything that changes the schema or the definitions: who comes second waits.
SCHEMA_LOCK = 0x4D494E494F4E5301


@contextmanager
def alembic_config() -> Iterator[Config]:
    """Alembic's configuration for the migrations of this installation, wherever it is installed."""
    with as_file(files("migrations")) as folder:
        config = Config()
        # configparser reads % as the start of a variable.
        config.set_main_option("script_location", str(Path(folder)).replace("%", "%%"))
        yield config


def migrate(engine: Engine, *, after: bool = False) -> tuple[str | None, str | None]:
    """Brings the schema to this release's revision.

    Each revision belongs to a phase. Those of "before" run before the new release starts, and leave a schema that the
    previous release goes on working on. Those of "after" take away what only the previous release used.

    Args:
        engine: the database.
        after: run the "after" revisions too. An empty database gets them at once.

    Returns:
        the revision before and the revision after; the same where nothing was to be done, or where a later release
        has brought it further.

    Raises:
        NotConfigured: the database cannot hold every text.
        Conflict: workers of an earlier release are still online, and `after` would break them.
    """
    with alembic_config() as config, engine.connect() as connection:
        _refuse_other_encodings(connection)
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": SCHEMA_LOCK})
        connection.commit()
        try:
            before = _revision(connection)
            if before is not None and before not in _known_revisions(config):
                return before, before
            config.attributes["connection"] = connection
            if after and before is not None:
                _refuse_old_workers(connection)
            command.upgrade(config, "head" if after or before is None else _last_before(config, before))
            connection.commit()
            return before, _revision(connection)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": SCHEMA_LOCK})
            connection.commit()


def _refuse_other_encodings(connection: Connection) -> None:
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise NotConfigured(f"The database's encoding is {encoding}. Make it anew with ENCODING 'UTF8'.")


def _revision(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return revision


def _refuse_old_workers(connection: Connection) -> None:
    online = connection.execute(
        text("SELECT name, version FROM workers WHERE status = 'online' AND version <> :version ORDER BY name"),
        {"version": __version__},
    ).all()
    connection.rollback()
    if online:
        names = ", ".join(f"{worker.name} ({worker.version})" for worker in online[:10])
        raise Conflict(
            f"{len(online)} workers of another release are online: {names}. Replace them with release {__version__}, "
            "then run `minion migrate --after` again."
        )


def _known_revisions(config: Config) -> list[str]:
    """From the newest to the oldest."""
    return [revision.revision for revision in ScriptDirectory.from_config(config).walk_revisions()]


def _last_before(config: Config, current: str | None = None) -> str:
    """The last revision of phase "before", or the current one if the schema has come further."""
    revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    return next(r.revision for r in revisions if r.module.PHASE == "before" or r.revision == current)


def check_schema_is_current(connection: Connection) -> None:
    """Raises NotConfigured where the schema is missing or older than this release; a newer one is fine."""
    current = MigrationContext.configure(connection).get_current_revision()
    with alembic_config() as config:
        known = _known_revisions(config)
        needed = _last_before(config)
    if current is None:
        raise NotConfigured("The database has no schema yet. Run `minion migrate`.")
    if current in known and known.index(current) > known.index(needed):
        raise NotConfigured(
            f"The database's schema is at {current}, this release needs {needed}. Run `minion migrate`."
        )


def init(engine: Engine) -> list[Change]:
    """Stores the default agents where they are missing; a default agent that somebody changed is left alone.

    Returns:
        what was created; empty the second time.
    """
    from shared.definition_files import load
    from shared.function_store import store_definitions

    with as_file(files("shared") / "default_agents") as folder, Session(engine) as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        present = {
            (kind, name)
            for kind, head in (("agent", Agent), ("tool", Tool), ("function", Function))
            for name in session.scalars(select(head.name).filter_by(namespace="default"))
        }
        missing = [definition for definition in load(folder) if (definition.kind, definition.name) not in present]
        return store_definitions(session, missing)
