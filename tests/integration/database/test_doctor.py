"""`minion doctor` about PostgreSQL."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from orchestrator.commands import database_checks, doctor
from orchestrator.commands.broker_checks import broker
from orchestrator.commands.doctor import _secrets
from orchestrator.commands.findings import Finding
from shared.notifications import make_redis
from shared.settings import Settings
from tests.conftest import Define
from tests.support.private_servers import forget_process_state

Configure = Callable[[str], dict[str, Finding]]


def findings(settings: Settings) -> dict[str, Finding]:
    return {each.what: each for each in doctor._in_time(database_checks.database, settings)}


@pytest.fixture
def configured(empty_database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Return a function that changes a setting of a database, and returns what is found there."""

    def configure(setting: str) -> dict[str, Finding]:
        with empty_database.begin() as connection:
            connection.execute(text(f"ALTER ROLE CURRENT_USER IN DATABASE {empty_database.url.database} SET {setting}"))
        monkeypatch.setenv("DATABASE_URL", empty_database.url.render_as_string(hide_password=False))
        forget_process_state()
        return findings(Settings())

    yield configure
    monkeypatch.undo()
    forget_process_state()


def test_database_of_the_tests_has_no_fault(database: Engine, settings: Settings) -> None:
    found = findings(settings)
    assert found.keys() >= {"database", "durability", "clock", "point-in-time recovery", "schema", "connections"}
    assert {each.verdict for each in found.values()} == {"ok", "warning"}
    assert found["durability"].found == "fsync and full_page_writes off"
    assert found["point-in-time recovery"].verdict == "warning"
    assert {found[name].verdict for name in ("database", "clock", "schema", "connections")} == {"ok"}


@pytest.mark.parametrize(
    ("setting", "what", "verdict"),
    [
        ("default_transaction_read_only = on", "writing", "failed"),
        ("statement_timeout = '5s'", "statement_timeout", "warning"),
        ("synchronous_commit = off", "synchronous_commit", "warning"),
    ],
)
def test_setting_that_harms_is_reported(configured: Configure, setting: str, what: str, verdict: str) -> None:
    finding = configured(setting)[what]
    assert finding.verdict == verdict
    assert finding.advice


def test_database_without_our_schema_is_checked_too(configured: Configure) -> None:
    found = configured("timezone = 'UTC'")
    assert found["durability"].verdict == "warning"
    assert found["database"].found == "The database has no schema yet. Run `minion migrate`."


def test_lock_ends_only_the_check_that_it_stops(
    database: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    with database.connect() as connection, connection.begin():
        connection.execute(text("LOCK TABLE workers"))
        found = doctor._in_time(database_checks.database, settings)
    assert found[-1].found == "no answer within 1 s"
    assert {each.verdict for each in found[:-1]} <= {"ok", "warning"}


def test_limit_of_the_role_is_compared_with_its_own_connections(database: Engine) -> None:
    with database.connect() as connection, connection.begin() as transaction:
        connection.execute(text("ALTER ROLE CURRENT_USER CONNECTION LIMIT 20"))
        finding = database_checks._connections(connection)
        transaction.rollback()
    assert finding.verdict == "warning"
    assert " of 20 used" in finding.found


def test_broker_that_refuses_info_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, place = settings.require_redis_url().rpartition("@")
    with make_redis() as connection:
        connection.acl_setuser("curious", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
        try:
            monkeypatch.setenv("REDIS_URL", f"unix://curious:secret@{place}")
            forget_process_state()
            [finding] = broker(Settings())
        finally:
            connection.acl_deluser("curious")
            monkeypatch.undo()
            forget_process_state()
    assert finding.verdict == "warning"
    assert "INFO" in finding.found


def test_too_few_connections_are_reported(database: Engine, settings: Settings) -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO workers (name, capabilities, slots, pool, host, pid, version, last_seen) "
                "VALUES ('large', '{work}', 1000, 'prefork', 'there', 1, '0', now())"
            )
        )
    finding = findings(settings)["connections"]
    assert finding.verdict == "warning"
    assert "need up to 1044" in finding.found
    assert "raise max_connections" in finding.advice


def test_clock_that_differs_is_reported(database: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_checks, "time", SimpleNamespace(time=lambda: time.time() - 60))
    finding = findings(settings)["clock"]
    assert finding.verdict == "warning"
    assert "by 60" in finding.found or "by 59" in finding.found


def test_secret_file_that_everyone_can_read_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("a secret")
    monkeypatch.setenv("ANTHROPIC_API_KEY_FILE", os.fspath(file))
    for mode, verdict in ((0o600, "ok"), (0o644, "warning")):
        file.chmod(mode)
        [finding] = _secrets(settings)
        assert finding.verdict == verdict
        assert "a secret" not in str(finding)


def test_batch_lane_without_a_key_is_reported(database: Engine, settings: Settings, define: Define) -> None:
    assert "batch lane" not in findings(settings)
    define({"kind": "agent", "name": "A", "model": "claude-sonnet-5-5", "config": {"lane": "batch"}})
    found = findings(settings)["batch lane"]
    assert (found.verdict, found.found) == ("warning", "1 agents, 0 calls wait")
    assert "the orchestrator needs it" in found.advice
