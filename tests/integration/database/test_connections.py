"""Connections that the server closes, and connections that many tasks share."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine, QueuePool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from shared.database import connections
from shared.database.connections import (
    autocommit,
    forget_engine,
    is_transient,
    make_engine,
    share_connections,
    statement,
)
from shared.settings import Settings
from tests.support.processes import wait_until

END_SLEEP = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(10)'")
BACKEND = text("SELECT pg_backend_pid() FROM pg_sleep(0.02)")
ALIVE = text("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = :pid)")

LAST_QUERY = text("SELECT query_start FROM pg_stat_activity WHERE pid = :pid")


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


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "AUTOCOMMIT"])
def test_ended_connection_of_the_pool_is_replaced_before_its_use(
    settings: Settings, database: Engine, isolation: str
) -> None:
    engine = make_engine(settings, pool_size=1).execution_options(isolation_level=isolation)
    with engine.connect() as connection, autocommit(database).connect() as other:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.close()
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        wait_until(lambda: not other.scalar(ALIVE, {"pid": pid}), "the server has closed the connection")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
    engine.dispose()


def test_living_connection_is_used_without_asking_the_server(settings: Settings, database: Engine) -> None:
    engine = autocommit(make_engine(settings, pool_size=1))
    with autocommit(database).connect() as other:
        with engine.connect() as connection:
            pid = connection.scalar(text("SELECT pg_backend_pid()"))
        before = other.scalar(LAST_QUERY, {"pid": pid})
        with engine.connect():
            assert other.scalar(LAST_QUERY, {"pid": pid}) == before
    engine.dispose()


def test_connection_with_a_message_of_the_server_stays_open(settings: Settings, database: Engine) -> None:
    engine = autocommit(make_engine(settings, pool_size=1))
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.execute(text("LISTEN greetings"))
    with autocommit(database).connect() as other:
        other.execute(text("NOTIFY greetings"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == pid
    engine.dispose()


def test_connections_that_many_tasks_share_stay_open(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst opens no more than there are, and the next one opens none."""
    monkeypatch.setattr(connections, "_shares", connections._Shares())
    connections.close_engine()
    share_connections()
    connections._statement_engine()  # threads may otherwise make several

    def backend(_: int) -> int:
        with statement() as connection:
            return int(connection.scalar(BACKEND))

    with ThreadPoolExecutor(20) as tasks:
        first, second = (set(tasks.map(backend, range(60))) for _ in range(2))
    connections._statement_engine().dispose()
    forget_engine()
    assert len(first) <= 6
    assert second <= first


def test_session_hit_by_a_time_limit_returns_its_connection(settings: Settings, database: Engine) -> None:
    """The session's own rollback would fail, and keep the connection until the garbage collector finds it."""
    engine = make_engine(settings, pool_size=1)

    def strike(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(SoftTimeLimitExceeded) as raised, Session(engine) as session:
            session.execute(text("SELECT pg_sleep(10)"))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert isinstance(engine.pool, QueuePool)
    assert raised.value.__traceback__ is not None  # it refers to the session, as the record of a failure does
    assert engine.pool.checkedout() == 0
    with Session(engine) as session:
        assert session.scalar(text("SELECT 1")) == 1
        session.execute(END_SLEEP)  # or its snapshot keeps dead rows for ten seconds
    engine.dispose()
