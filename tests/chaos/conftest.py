"""Tasks made by hand in a database with the audits, so that tests can break promises on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from orchestrator.local.embedded import EmbeddedServers, scratch_dir
from shared.contracts.documents import parse_definition
from shared.database.connections import make_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.settings import Settings
from tests.chaos import audit, mixed_audit, mixed_load
from tests.chaos.system import DEFINITIONS, QUEUE
from tests.support.lifecycle_driver import LifecycleDriver


@pytest.fixture(scope="module")
def template() -> Iterator[Settings]:
    """Database with both audits, from which others are copied."""
    with scratch_dir() as folder, EmbeddedServers(folder, durable=False) as servers:
        addresses = servers.start()
        settings = Settings(DATABASE_URL=addresses.database_url, REDIS_URL=addresses.redis_url)
        engine = make_engine(settings)
        migrate(engine)
        with engine.begin() as connection:
            audit.install(connection)
            mixed_audit.install(connection)
        with Session(engine) as session:
            for definitions in (DEFINITIONS, mixed_load.DEFINITIONS):
                store_definitions(session, [parse_definition(definition) for definition in definitions])
        engine.dispose()
        yield settings


@pytest.fixture
def driver(template: Settings) -> Iterator[LifecycleDriver]:
    """Tasks made by hand, in a separate database."""
    address = make_url(template.require_database_url())
    server = create_engine(address.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS broken WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE broken TEMPLATE {address.database}"))
    server.dispose()
    engine = create_engine(address.set(database="broken"))
    yield LifecycleDriver(engine, QUEUE)
    engine.dispose()
