"""Real servers for the tests: one private PostgreSQL and Valkey per session, emptied for each test that asks.

servers     the running EmbeddedServers (fault tests kill and start its `.postgres` and `.valkey`)
settings    the process's settings, which name those servers; child processes inherit the same environment
database    the process's engine on a migrated schema without rows, and a broker without keys
define      stores definitions: `define({"kind": "agent", …}, …)`, without checking functions' code
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from orchestrator.local.embedded import EmbeddedServers
from pytest_minions.database import empty
from shared.contracts.documents import parse_definition
from shared.database.connections import get_engine
from shared.definitions.store import Change, DefinitionStore
from shared.notifications import make_redis
from shared.settings import Settings, get_settings
from tests.support.private_servers import private_servers

# These tests do not measure the speed of the machine.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")

Define = Callable[..., list[Change]]

# A separate repository, whose fixtures must not meet these: acceptance/test_test_kit.py runs it.
collect_ignore = ["kit"]
LONGEST = ("tests/acceptance/", "tests/chaos/", "tests/crash_matrix/", "tests/sandbox/")


def pytest_configure() -> None:
    """Let Ctrl-C reach commands that tests start: a shell's background job ignores it, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection() -> None:
    """Keep the garbage collector away from modules and tests, which live as long as this process."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest modules first, so that no process works alone at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Let it examine what tests create, and nothing else."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def servers() -> Iterator[EmbeddedServers]:
    """The session's private servers; their addresses and an API key are in the environment."""
    with private_servers() as (running, _):
        _survive_kills(get_engine())
        yield running


@pytest.fixture(scope="session")
def settings(servers: EmbeddedServers) -> Settings:
    """The settings of the session's servers."""
    return get_settings()


@pytest.fixture
def database(settings: Settings) -> Engine:
    """The process's engine on empty tables, and an empty broker."""
    engine = get_engine()
    empty(engine)
    with make_redis() as broker:
        broker.flushall()
    return engine


@pytest.fixture
def define(database: Engine) -> Define:
    """Return a function that stores definitions, each a dictionary with `kind`."""

    def store(*definitions: dict[str, Any]) -> list[Change]:
        parsed = [parse_definition(definition) for definition in definitions]
        with Session(database) as session, session.begin():
            return DefinitionStore(session, validate_code=lambda function: None).apply(parsed)

    return store


def _survive_kills(engine: Engine) -> None:
    """Make commits reach the kernel before they return: a killed server has all of them when it restarts."""
    with engine.begin() as connection:
        connection.execute(text("ALTER ROLE CURRENT_USER SET synchronous_commit = on"))
    engine.dispose()
