"""Retention of the audit log: the checkpoint keeps verification possible, and evidence is not destroyed."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from orchestrator.retention import audit as retention
from orchestrator.retention.audit import prune_audit
from shared.audit import log
from shared.audit.log import AuditFilter
from shared.audit.signing import Link, Signer
from shared.settings import Settings
from tests.integration.operations.test_audit_log import ADMIN, as_owner, check, seal_all


@pytest.fixture
def signer(settings: Settings) -> Signer:
    return Signer.of(settings)


def write(database: Engine, signer: Signer, number: int, *, days: int = 0) -> None:
    """Write rows of some age, and seal them."""
    with as_owner(database) as connection:
        for _ in range(number):
            log.record(connection, ADMIN, "pause.set", f"{days} days", namespace="default")
        connection.execute(
            text("UPDATE audit_log SET at = at - make_interval(days => :days) WHERE position IS NULL"), {"days": days}
        )
    seal_all(database, signer)


def targets(database: Engine) -> list[Any]:
    with database.connect() as connection:
        return [row["target"] or row["act"] for row in log.list_rows(connection, AuditFilter(), limit=100)]


def test_checkpoint_replaces_old_rows(
    database: Engine, settings: Settings, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    write(database, signer, 5, days=500)
    write(database, signer, 2, days=5)
    assert prune_audit(database, settings) == 5
    assert set(targets(database)) == {"5 days", "audit.prune"}
    report = check(database, signer)
    assert (report.faults, report.start.position, report.rows, report.unsealed) == ([], 5, 2, 3)
    assert check(database, signer, logged_head=report.start).faults == []
    assert check(database, signer, logged_head=Link(5, report.head.hash)).faults
    write(database, signer, 1)
    report = check(database, signer)
    assert (report.faults, report.head.position) == ([], 11)
    assert prune_audit(database, settings) == 0


def test_all_rows_may_be_old(database: Engine, settings: Settings, signer: Signer) -> None:
    write(database, signer, 3, days=500)
    assert prune_audit(database, settings) == 3
    assert check(database, signer).faults == []
    write(database, signer, 1)
    assert (check(database, signer).faults, check(database, signer).head.position) == ([], 5)


def test_rows_of_a_day_are_deleted_together(database: Engine, settings: Settings, signer: Signer) -> None:
    write(database, signer, 1, days=400)
    assert prune_audit(database, settings) == 0
    write(database, signer, 1, days=401)
    assert prune_audit(database, settings.model_copy(update={"retention_audit": 0.0})) == 0
    assert prune_audit(database, settings.model_copy(update={"retention_audit": 399.0})) == 2


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_log SET actor = 'Eve' WHERE position = 2",
        "UPDATE audit_log SET at = at - interval '1 day' WHERE position = 2",
        "DELETE FROM audit_log WHERE position = 2",
        "INSERT INTO audit_ends SELECT 'start', 1, hash, signature FROM audit_ends",
    ],
)
def test_rows_with_a_fault_are_kept(database: Engine, settings: Settings, signer: Signer, tampering: str) -> None:
    write(database, signer, 4, days=500)
    with as_owner(database) as connection:
        connection.execute(text(tampering))
    faults = check(database, signer).faults
    assert faults
    with capture_logs() as logged:
        assert prune_audit(database, settings) == 0
    assert [line["event"] for line in logged] == ["audit_log_not_pruned"]
    assert check(database, signer).faults == faults


def test_recent_rows_cannot_be_deleted_by_the_function_alone(database: Engine, signer: Signer) -> None:
    """A caller without the key leaves a checkpoint that is not signed."""
    write(database, signer, 3)
    with database.begin() as connection:
        connection.execute(text("SELECT minion_prune_audit(2, sha256('x'), sha256('y'))"))
    assert {fault.kind for fault in check(database, signer).faults} == {"forged", "moved"}


def test_checkpoint_never_moves_back(database: Engine, settings: Settings, signer: Signer) -> None:
    write(database, signer, 3, days=500)
    prune_audit(database, settings)
    with database.begin() as connection:
        connection.execute(text("SELECT minion_prune_audit(1, sha256('x'), sha256('y'))"))
    assert check(database, signer).faults == []
