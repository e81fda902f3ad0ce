"""Threat rules: each raises an alert in the audit log and in the log, once an hour."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from orchestrator.maintenance.threat_watch import RULES, TAKE_LOCK, WATCH_LOCK, ThreatWatch
from shared.access.actors import Actor, Key, bootstrap_key, unknown_key
from shared.audit import log
from shared.audit.log import AuditFilter
from shared.functions import security_events
from shared.sandbox import SandboxFault
from tests.conftest import Define
from tests.integration.conftest import ACT, Tasks
from tests.support.definitions import function_definition

ADMIN = bootstrap_key("0f1e2d3c")


def write(
    database: Engine,
    number: int,
    act: str,
    *,
    key: Key = ADMIN,
    address: str = "",
    namespace: str = "default",
    **after: Any,
) -> None:
    with database.begin() as connection:
        for _ in range(number):
            log.record(connection, Actor(key, address=address), act, "x", namespace=namespace, after=after)


def alerts(database: Engine) -> list[tuple[str, str, int]]:
    with database.connect() as connection:
        rows = log.list_rows(connection, AuditFilter(act="alert"), limit=100)
    assert {row["actor"] for row in rows} <= {"orchestrator (system)"}
    return [(row["act"], row["target"], row["after"]["number"]) for row in rows]


def addresses(database: Engine, number: int, *, age: str = "1 minute") -> None:
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO key_addresses SELECT 'ci mk_abcdef', '10.0.0.' || n, now() - CAST(:age AS interval) "
                "FROM generate_series(1, :number) n"
            ),
            {"number": number, "age": age},
        )


def denials(database: Engine, define: Define, number: int) -> None:
    define(function_definition("odd"))
    with database.begin() as connection:
        version: UUID = connection.scalar(text("SELECT id FROM function_versions"))
        for _ in range(number):
            values = {"version": version}
            connection.execute(text("SELECT minion_security_event(:version, NULL, 'import_denied', '{}', 0)"), values)


def refusals(database: Engine, key: Key, number: int) -> None:
    write(database, 2, "access.refused", key=key, address="10.0.0.9", refused=number // 2)


RAISED: dict[str, Any] = {
    "alert.key_addresses": (lambda d, define: addresses(d, 20), [("key ci mk_abcdef", 20)]),
    "alert.refusals": (lambda d, define: refusals(d, unknown_key(), 100), [("address 10.0.0.9", 100)]),
    "alert.sandbox_denials": (lambda d, define: denials(d, define, 10), [("function odd", 10)]),
    "alert.approvals": (
        lambda d, define: write(d, 20, "task.decide", verdict="approve"),
        [("key bootstrap api:0f1e2d3c", 20)],
    ),
}


def test_every_rule_is_tested() -> None:
    assert {rule.act for rule in RULES} == set(RAISED)


@pytest.mark.parametrize("act", RAISED)
def test_rule_raises_an_alert_once(database: Engine, define: Define, act: str) -> None:
    happen, expected = RAISED[act]
    happen(database, define)
    with capture_logs() as logged:
        ThreatWatch(database).run_once()
        ThreatWatch(database).run_once()
    assert alerts(database) == [(act, subject, number) for subject, number in expected]
    warned = [(line["rule"], line["subject"], line["log_level"]) for line in logged if line["event"] == "threat_alert"]
    assert warned == [(act, subject, "warning") for subject, _ in expected]


def test_refusals_of_a_known_key_name_the_key(database: Engine) -> None:
    refusals(database, ADMIN, 200)
    ThreatWatch(database).run_once()
    assert {subject for _, subject, _ in alerts(database)} == {"address 10.0.0.9", "key bootstrap api:0f1e2d3c"}


def test_approvals_in_several_namespaces_are_counted_together(database: Engine) -> None:
    for namespace in ("default", "team"):
        write(database, 10, "task.decide", namespace=namespace, verdict="approve")
    ThreatWatch(database).run_once()
    assert alerts(database) == [("alert.approvals", "key bootstrap api:0f1e2d3c", 20)]
    with database.connect() as connection:
        assert log.list_rows(connection, AuditFilter(act="alert"), limit=1)[0]["namespace"] is None


def test_attacks_of_programs_name_the_agent(database: Engine, define: Define, tasks: Tasks) -> None:
    define(ACT, {"kind": "agent", "name": "Coder", "type": "function", "tool": "act"})
    task = tasks.submit("Coder")
    with database.begin() as connection:
        for _ in range(10):
            security_events.record_of_program(connection, task, SandboxFault("security", "a forbidden system call"))
    ThreatWatch(database).run_once()
    assert alerts(database) == [("alert.sandbox_denials", "agent Coder", 10)]


def test_little_raises_no_alert(database: Engine, define: Define) -> None:
    addresses(database, 19)
    refusals(database, unknown_key(), 98)
    denials(database, define, 9)
    write(database, 19, "task.decide", verdict="approve")
    write(database, 30, "task.decide", verdict="reject")
    ThreatWatch(database).run_once()
    assert alerts(database) == []


def test_old_addresses_are_forgotten(database: Engine) -> None:
    addresses(database, 30, age="25 hours")
    ThreatWatch(database).run_once()
    assert alerts(database) == []
    with database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM key_addresses")) == 0


def test_alert_is_raised_by_one_orchestrator(database: Engine) -> None:
    addresses(database, 20)
    with database.begin() as other:
        assert other.scalar(TAKE_LOCK, {"key": WATCH_LOCK})
        ThreatWatch(database).run_once()
        assert alerts(database) == []
