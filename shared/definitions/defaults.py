"""The default agents. Storing them is idempotent."""

from __future__ import annotations

from importlib.resources import as_file, files

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from shared.database.connections import SCHEMA_LOCK
from shared.database.tables import Agent, Function, Tool
from shared.definitions.apply import store_definitions
from shared.definitions.files import load
from shared.definitions.store import Change


def init(engine: Engine) -> list[Change]:
    """Store the default agents that are missing; existing ones are left alone, even if a user changed them.

    Returns:
        the created definitions; empty the second time.
    """
    with as_file(files("shared.definitions") / "default_agents") as folder, Session(engine) as session:
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SCHEMA_LOCK})
        present = {
            (kind, name)
            for kind, head in (("agent", Agent), ("tool", Tool), ("function", Function))
            for name in session.scalars(select(head.name).filter_by(namespace="default"))
        }
        missing = [definition for definition in load(folder) if (definition.kind, definition.name) not in present]
        return store_definitions(session, missing)
