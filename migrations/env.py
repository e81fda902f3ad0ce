"""Alembic's entry point. The connection comes from `shared.database.schema`, or from the settings on the command
line.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from shared.database.connections import make_engine
from shared.database.tables import Base
from shared.settings import get_settings
from shared.tasks.sql import NUMBER, create_foundation, installed


def run(connection: Connection) -> None:
    """Run the migrations in one transaction on the given connection."""
    context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
    with context.begin_transaction():
        if installed(connection) <= NUMBER:
            create_foundation(connection)
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(get_settings())
    with engine.connect() as own:
        run(own)
    engine.dispose()
