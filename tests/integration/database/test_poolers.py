"""Poolers in front of PostgreSQL: one that keeps sessions works, one that shares them is refused at the start."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, make_url

from shared.database import sessions
from shared.database.sessions import check_pooler, open_session
from shared.errors import NotConfigured
from shared.settings import Settings
from tests.integration.conftest import Tasks
from tests.support import pgbouncer
from tests.support.processes import Process, killed_on_exit, start_orchestrator, start_worker, wait_online

SHARED = "DATABASE_URL leads to a pooler in transaction or statement mode"
with_pgbouncer = pytest.mark.skipif(not pgbouncer.installed(), reason="PgBouncer is not installed on this machine")


@pytest.fixture
def pooled(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Settings]]:
    """Return a function that puts PgBouncer in front of the tests' PostgreSQL; started processes then use it."""
    with ExitStack() as stack:

        def through(mode: str, **options: str) -> Settings:
            address = stack.enter_context(pgbouncer.pooling(settings.require_database_url(), mode, **options))
            monkeypatch.setenv("DATABASE_URL", address)
            return Settings()

        yield through


def test_direct_connection_is_no_pooler(settings: Settings) -> None:
    assert not check_pooler(settings)


def test_session_that_keeps_its_notifications_is_recognised(settings: Settings) -> None:
    with open_session(settings, "test") as connection:
        assert sessions._keeps_session(connection, settings)


def test_session_without_notifications_is_recognised(
    settings: Settings, empty_database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = empty_database.url.render_as_string(hide_password=False)
    monkeypatch.setattr(sessions, "NOTIFICATION_PATIENCE", 0.1)
    with open_session(settings, "test") as connection:
        assert not sessions._keeps_session(
            connection, settings.model_copy(update={"database_url": SecretStr(elsewhere)})
        )


def test_server_that_stalls_is_not_taken_for_a_pooler(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "NOTIFICATION_PATIENCE", 0.1)
    with open_session(settings, "test") as connection:
        process = connection.info.backend_pid

        def open_while_it_stalls(*arguments: Any) -> psycopg.Connection[Any]:
            os.kill(process, signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (process, signal.SIGCONT)).start()
            return open_session(*arguments)

        monkeypatch.setattr(sessions, "open_session", open_while_it_stalls)
        assert sessions._keeps_session(connection, settings)


def test_options_of_the_address_arrive_in_dedicated_sessions(settings: Settings) -> None:
    url = make_url(settings.require_database_url())
    address = url.update_query_dict({"options": "-c search_path=public,pg_temp"}).render_as_string(hide_password=False)
    with open_session(settings.model_copy(update={"database_url": SecretStr(address)}), "test") as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("public,pg_temp",)


@with_pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("order", [{}, {"server_round_robin": "1"}], ids=["last", "round_robin"])
def test_pooler_that_shares_sessions_is_refused(
    pooled: Callable[..., Settings], mode: str, order: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "NOTIFICATION_PATIENCE", 1.0)
    given = pooled(mode, **order)
    _open_two(given)
    with pytest.raises(NotConfigured, match=SHARED):
        check_pooler(given)


def _open_two(settings: Settings) -> None:
    """Let the pooler open two connections to the server."""
    with open_session(settings, "one") as one, open_session(settings, "two") as two, suppress(psycopg.Error):
        one.autocommit = two.autocommit = False  # not in statement mode
        one.execute("SELECT 1")
        two.execute("SELECT 1")


@with_pgbouncer
@pytest.mark.parametrize("process", ["orchestrator", "worker", "migrate"])
def test_process_says_why_it_does_not_start(pooled: Callable[..., Settings], tmp_path: Path, process: str) -> None:
    pooled("transaction")
    commands = {
        "orchestrator": start_orchestrator,
        "worker": lambda folder: start_worker(folder, "work"),
        "migrate": lambda folder: Process([sys.executable, "-m", "orchestrator.cli", "migrate"], folder / "log"),
    }
    started = commands[process](tmp_path)
    with killed_on_exit(started):
        assert started.wait() == NotConfigured.exit_code
        assert SHARED in started.output()


@with_pgbouncer
def test_tasks_run_behind_a_pooler_that_keeps_sessions(
    database: Engine,
    tool_package: Path,
    act: Callable[..., str],
    tasks: Tasks,
    pooled: Callable[..., Settings],
    tmp_path: Path,
) -> None:
    agent = act()
    assert check_pooler(pooled("session"))
    orchestrator, worker = start_orchestrator(tmp_path), start_worker(tmp_path, "work")
    with killed_on_exit(orchestrator, worker):
        wait_online(database, worker)
        assert tasks.run(agent, {"do": "answer"})["state"] == "succeeded"
        worker.stop()
        orchestrator.stop()
        assert "round_failed" not in orchestrator.output()
