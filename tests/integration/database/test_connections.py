"""Connections that the server closes."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from shared.database.connections import autocommit, is_transient, make_engine
from shared.settings import Settings
from tests.support.processes import wait_until

ALIVE = text("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = :pid)")


def test_transaction_that_was_idle_for_too_long_is_worth_another_try(settings: Settings, database: Engine) -> None:
    """The server ends it if this process was frozen for a lease, or if the server's clock was put ahead."""
    engine = make_engine(settings, pool_size=1, pre_ping=False)
    with engine.connect() as connection, autocommit(database).connect() as other:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 1"))
        wait_until(lambda: not other.scalar(ALIVE, {"pid": pid}), "the server has closed the connection")
        with pytest.raises(DBAPIError) as raised:
            connection.execute(text("SELECT 1"))
        assert is_transient(raised.value)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()
