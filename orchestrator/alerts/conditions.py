"""Conditions that an operator always wants to know of: a query and a sentence each.

A query returns at most `store.MOST_FOUND` rows with `namespace` and `subject`, what its sentence needs, and perhaps
`agent`, `capability` and `value`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from orchestrator.alerts.queues import Queue
from orchestrator.alerts.store import MOST_FOUND, Found, name_of
from orchestrator.explain import duration
from shared.settings import Settings
from shared.tasks import targets

UNSERVED_SECONDS = 60.0
"""A worker that is restarted is no reason for an alert."""
FAILED_ATTEMPTS = 3
FAILING_SECONDS = 600.0
"""An MCP server that is restarted is no reason for an alert."""
MOST_DEAD_LETTERS = 1000
THREATS = ("key_addresses", "refusals", "sandbox_denials", "approvals")
THREAT_MINUTES = 65
"""The threat watch repeats what lasts once an hour."""

Sentence = Callable[[RowMapping], str]


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that a query finds.

    Attributes:
        unit: of the value.
    """

    name: str
    query: TextClause
    sentence: Sentence
    unit: str | None = None


APPROVAL_OLD = text(
    """
    SELECT namespace, agent_name AS subject, agent_name AS agent, count(*) AS tasks,
           extract(epoch FROM now() - min(updated_at))::float8 AS value
        FROM task_status WHERE wait_reason IN ('approval', 'answer') AND state = 'waiting'
            AND :approval_seconds > 0 AND updated_at < now() - :approval_seconds * interval '1 second'
        GROUP BY namespace, agent_name ORDER BY value DESC LIMIT :most
    """
)
BUDGET_BLOCKS = text(
    """
    SELECT NULLIF(b.namespace, '') AS namespace, b.scope, b.name, b.period,
           CASE b.scope WHEN 'agent' THEN b.name END AS agent,
           concat_ws(' ', b.scope, NULLIF(b.name, ''), b.period) AS subject
        FROM standing_budgets b
        CROSS JOIN LATERAL minion_period(b.period, b.timezone, clock_timestamp()) p
        JOIN standing_usage u ON u.budget_id = b.id AND u.period_start = p.starts
        WHERE b.on_breach <> 'alert' AND (u.spent_tokens + u.reserved_tokens >= b.tokens
                                          OR u.spent_microdollars + u.reserved_microdollars >= b.microdollars)
        ORDER BY b.id LIMIT :most
    """
)
# What has failed often is tried last, however many messages are pending.
WEBHOOK_FAILS = text(
    """
    SELECT w.namespace, w.name AS subject, w.disabled_reason IS NOT NULL AS disabled, d.attempts AS value
        FROM webhooks w LEFT JOIN LATERAL (
            SELECT max(o.attempts) AS attempts FROM (
                SELECT attempts FROM webhook_deliveries
                    WHERE webhook_id = w.id AND status = 'pending' ORDER BY next_at DESC LIMIT 200) o
                WHERE o.attempts >= :failed_attempts) d ON true
        WHERE w.enabled AND d.attempts IS NOT NULL OR NOT w.enabled AND w.disabled_reason IS NOT NULL
        ORDER BY w.id LIMIT :most
    """
)
MCP_SERVER_FAILS = text(
    """
    SELECT namespace, server AS subject, count(*) AS tasks,
           extract(epoch FROM now() - min(failing_since))::float8 AS value
        FROM remote_calls WHERE state IN ('working', 'input_required')
            AND failing_since < now() - :failing_seconds * interval '1 second'
        GROUP BY namespace, server ORDER BY value DESC LIMIT :most
    """
)
DEAD_LETTERS = text(
    """
    SELECT NULL AS namespace, 'dead letters' AS subject, (gauges->'minions_dead_letters'->0->>1)::float8 AS value
        FROM statistics_state WHERE (gauges->'minions_dead_letters'->0->>1)::float8 >= :most_dead_letters
    """
)
# Until another version is activated or tried, for a week at most.
CANARY_ROLLED_BACK = text(
    """
    SELECT DISTINCT ON (c.agent_id) a.namespace, a.name AS subject, a.name AS agent, v.number AS version, c.reason
        FROM canaries c JOIN agents a ON a.id = c.agent_id JOIN agent_versions v ON v.id = c.version_id
        WHERE c.outcome = 'rolled_back' AND c.ended_at > now() - interval '7 days'
          AND a.active_version_id = c.baseline_id
          AND NOT EXISTS (SELECT FROM canaries n WHERE n.agent_id = c.agent_id AND n.id > c.id)
        ORDER BY c.agent_id, c.id DESC LIMIT :most
    """
)
THREAT = text(
    """
    SELECT DISTINCT ON (act, target, namespace) namespace, 'threat.' || split_part(act, '.', 2) AS rule,
           target AS subject, (after->>'number')::float8 AS value, after->>'minutes' AS minutes
        FROM audit_log WHERE act = ANY (:threats) AND at > now() - :threat_minutes * interval '1 minute'
        ORDER BY act, target, namespace, at DESC LIMIT :most
    """
).bindparams(bindparam("threats", type_=ARRAY(TEXT)))


def _approval(row: RowMapping) -> str:
    waits = (
        f"{row['tasks']} tasks of {row['subject']} wait" if row["tasks"] > 1 else f"A task of {row['subject']} waits"
    )
    return f"{waits} for a person, the oldest for {duration(row['value'])}. `minion approvals` lists them."


def _budget(row: RowMapping) -> str:
    whose = targets.describe(row["scope"], row["namespace"] or "", row["name"])
    return f"The budget of {whose} per {row['period']} has no room left. `minion budgets` shows what was spent."


def _webhook(row: RowMapping) -> str:
    if row["disabled"]:
        return f"The webhook {row['subject']} is disabled, because its endpoint asked for that."
    return (
        f"Messages to the webhook {row['subject']} have failed {row['value']} times. "
        f"`minion webhooks deliveries {row['subject']}` shows the answers."
    )


def _mcp_server(row: RowMapping) -> str:
    whose = "one of its tasks" if row["tasks"] == 1 else f"{row['tasks']} of its tasks"
    return (
        f"The MCP server {row['subject']} could not be asked about {whose}, for up to {duration(row['value'])}. "
        f"`minion mcp tools {row['subject']}` shows whether it answers."
    )


def _dead_letters(row: RowMapping) -> str:
    more = " or more" if row["value"] >= 10_000 else ""
    return f"{row['value']:.0f}{more} failed tasks have no replay. `minion dead-letters` groups them by error."


def _canary(row: RowMapping) -> str:
    return (
        f"The canary of {row['subject']}, version {row['version']}, was rolled back. {row['reason']} "
        f"`minion agents show {row['subject']}` shows the figures."
    )


THREAT_SENTENCES = {
    "threat.key_addresses": "was used from {number:.0f} addresses",
    "threat.refusals": "had {number:.0f} requests refused",
    "threat.sandbox_denials": "tried {number:.0f} times what the sandbox denies",
    "threat.approvals": "approved {number:.0f} proposals",
}


def _threat(row: RowMapping) -> str:
    done = THREAT_SENTENCES[row["rule"]].format(number=row["value"] or 0)
    return f"The {row['subject']} {done} in {row['minutes']} minutes. `minion audit` shows the acts."


RULES = (
    Rule("approval_old", APPROVAL_OLD, _approval, "seconds"),
    Rule("budget_blocks", BUDGET_BLOCKS, _budget),
    Rule("webhook_fails", WEBHOOK_FAILS, _webhook, "attempts"),
    Rule("mcp_server_fails", MCP_SERVER_FAILS, _mcp_server, "seconds"),
    Rule("dead_letters", DEAD_LETTERS, _dead_letters, "tasks"),
    Rule("canary_rolled_back", CANARY_ROLLED_BACK, _canary),
    Rule("threat", THREAT, _threat, "events"),
)
QUEUE_RULES = ("unserved", "pending_old")
NAMES = (
    *QUEUE_RULES,
    *(rule.name for rule in RULES if rule.name != "threat"),
    *(f"threat.{name}" for name in THREATS),
)


def find(connection: Connection, settings: Settings) -> Iterator[Found]:
    """Yield what the queries find."""
    values: dict[str, Any] = {
        "approval_seconds": settings.alert_approval_seconds,
        "failed_attempts": FAILED_ATTEMPTS,
        "failing_seconds": FAILING_SECONDS,
        "most_dead_letters": MOST_DEAD_LETTERS,
        "threats": [f"alert.{name}" for name in THREATS],
        "threat_minutes": THREAT_MINUTES,
        "most": MOST_FOUND,
    }
    for rule in RULES:
        for row in connection.execute(rule.query, values).mappings():
            yield Found(
                rule=row.get("rule", rule.name),
                namespace=row["namespace"],
                subject=row["subject"] or "(unknown)",
                agent=row.get("agent"),
                value=row.get("value"),
                unit=rule.unit,
                sentence=rule.sentence(row),
            )


def of_queues(queues: list[Queue], settings: Settings) -> Iterator[Found]:
    """Yield queues that no worker serves, and those whose first task has waited for too long."""
    unserved = [queue for queue in queues if not queue.served and queue.age >= UNSERVED_SECONDS]
    late = [queue for queue in queues if queue.served and 0 < settings.alert_pending_seconds <= queue.age]
    for rule, found in (("unserved", unserved), ("pending_old", late)):
        for queue in sorted(found, key=lambda queue: -queue.age)[:MOST_FOUND]:
            capability = name_of(queue.capability)
            waits = f"Tasks have waited for {capability} for up to {duration(queue.age)}"
            action = (
                f"and no live worker serves it. Start one: `minion worker {capability}`."
                if rule == "unserved"
                else "though workers serve it. `minion capabilities` shows what they do."
            )
            yield Found(
                rule=rule,
                namespace=queue.namespace,
                subject=queue.capability,
                capability=queue.capability,
                value=queue.age,
                unit="seconds",
                sentence=f"{waits}, {action}",
            )


QUIET = timedelta(minutes=2)
"""Nothing must have been found for this long: a condition that comes and goes is one alert."""
