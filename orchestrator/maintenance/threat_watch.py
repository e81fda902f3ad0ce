"""The threat watch: a few rules about what an attacker does, each of which raises an alert.

An alert is a row of the audit log and a warning in the log of one orchestrator, once an hour for each rule and subject.
The rules read tables that all orchestrators share, so it does not matter which of them saw what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, RowMapping, TextClause, text

from orchestrator.loops.loop import Loop
from shared.access.actors import orchestrator
from shared.audit import log as audit
from shared.database.connections import SCHEMA_LOCK
from shared.tasks.queries import first_id_at

log = structlog.get_logger(__name__)

WATCH_LOCK = SCHEMA_LOCK + 3
EVERY_SECONDS = 10.0
QUIET = timedelta(hours=1)
KEPT = timedelta(days=1)

NOW = text("SELECT now()")
TAKE_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")
RAISED = text("SELECT 1 FROM audit_log WHERE act = :act AND target = :target AND at > :since LIMIT 1")
FORGET_ADDRESSES = text("DELETE FROM key_addresses WHERE last_seen < :before")


@dataclass(frozen=True, slots=True)
class Rule:
    """A number of events of one subject in a period that raises an alert.

    Attributes:
        query: returns `subject`, `namespace` and `number` of those with at least `:most` since `:since`. `:first` is an
            id of that time.
    """

    act: str
    most: int
    period: timedelta
    query: TextClause


RULES = (
    Rule(
        "alert.key_addresses",
        20,
        timedelta(hours=1),
        text(
            "SELECT 'key ' || key AS subject, NULL AS namespace, count(*) AS number FROM key_addresses "
            "WHERE last_seen > :since GROUP BY key HAVING count(*) >= :most"
        ),
    ),
    Rule(
        "alert.refusals",
        100,
        timedelta(minutes=10),
        text(
            """
            WITH refused AS (
                SELECT actor, key_prefix, address, namespace, (after->>'refused')::bigint AS number FROM audit_log
                    WHERE act = 'access.refused' AND at > :since
            )
            SELECT 'address ' || address AS subject, NULL AS namespace, sum(number) AS number FROM refused
                WHERE address IS NOT NULL GROUP BY address HAVING sum(number) >= :most
            UNION ALL
            SELECT 'key ' || actor || ' ' || key_prefix, namespace, sum(number) FROM refused
                WHERE key_prefix IS NOT NULL GROUP BY actor, key_prefix, namespace HAVING sum(number) >= :most
            """
        ),
    ),
    Rule(
        "alert.sandbox_denials",
        10,
        timedelta(minutes=10),
        text(
            """
            SELECT 'function ' || f.name AS subject, f.namespace, count(*) AS number FROM security_events e
                JOIN function_versions v ON v.id = e.function_version_id JOIN functions f ON f.id = v.function_id
                WHERE e.id >= :first AND e.created_at > :since
                  AND e.kind IN ('forbidden_name', 'hash_mismatch', 'import_denied', 'security')
                GROUP BY f.namespace, f.name HAVING count(*) >= :most
            UNION ALL
            SELECT 'agent ' || t.agent_name, t.namespace, count(*) FROM security_events e
                JOIN tasks t ON t.id = e.task_id
                WHERE e.id >= :first AND e.created_at > :since AND e.function_version_id IS NULL
                GROUP BY t.namespace, t.agent_name HAVING count(*) >= :most
            """
        ),
    ),
    Rule(
        "alert.approvals",
        20,
        timedelta(minutes=5),
        text(
            "SELECT concat_ws(' ', 'key', actor, key_prefix) AS subject, count(*) AS number, "
            "CASE WHEN count(DISTINCT namespace) = 1 THEN min(namespace) END AS namespace FROM audit_log "
            "WHERE act = 'task.decide' AND at > :since AND after->>'verdict' = 'approve' "
            "GROUP BY actor, key_prefix HAVING count(*) >= :most"
        ),
    ),
)


class ThreatWatch(Loop):
    """Raises alerts. Every orchestrator may run it: one at a time has the lock."""

    name = "threat_watch"

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def run_once(self) -> float:
        """Check all rules."""
        with self.engine.begin() as connection:
            alerts = list(_raise(connection)) if connection.scalar(TAKE_LOCK, {"key": WATCH_LOCK}) else []
        for alert in alerts:
            log.warning("threat_alert", **alert)
        return EVERY_SECONDS


def _raise(connection: Connection) -> Iterator[dict[str, Any]]:
    """Write the alerts that were not raised lately; yield them."""
    now: datetime = connection.execute(NOW).scalar_one()
    connection.execute(FORGET_ADDRESSES, {"before": now - KEPT})
    for rule in RULES:
        for found in _matches(connection, rule, now - rule.period):
            known = {"act": rule.act, "target": found["subject"], "since": now - QUIET}
            if connection.execute(RAISED, known).first() is not None:
                continue
            facts = {"number": int(found["number"]), "minutes": int(rule.period.total_seconds() // 60)}
            audit.record(
                connection, orchestrator(), rule.act, found["subject"], namespace=found["namespace"], after=facts
            )
            yield {"rule": rule.act, "subject": found["subject"], "namespace": found["namespace"], **facts}


def _matches(connection: Connection, rule: Rule, since: datetime) -> list[RowMapping]:
    values = {"since": since, "first": first_id_at(since), "most": rule.most}
    return list(connection.execute(rule.query, values).mappings())
