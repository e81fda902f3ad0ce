"""Alerts as rows: what was found is compared with what is open, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from shared.contracts.visible_text import one_line
from shared.storable import storable

MOST_FOUND = 200
"""Alerts of one rule. There may be as many capabilities and webhooks as callers like."""
LONGEST_NAME = 200
LONGEST_SENTENCE = 600
KEPT_DAYS = 90
MOST_KEPT = 10_000

COLUMNS = (
    "a.id, a.rule, a.namespace, a.subject, a.agent, a.capability, a.state, a.sentence, a.value, a.usual, a.low, "
    "a.high, a.unit, a.facts, a.first_seen, a.last_seen, a.changed_at, a.resolved_at, "
    "a.acknowledged_at, a.acknowledged_by"
)
# Both change many rows, in different orders.
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtext('minions ' || current_schema()), hashtext('alert rows'))")
SEE = text(
    """
    INSERT INTO alerts AS a
        (rule, namespace, subject, agent, capability, sentence, value, usual, low, high, unit, facts)
        VALUES (:rule, :namespace, :subject, :agent, :capability, :sentence, :value, :usual, :low, :high, :unit,
                CAST(:facts AS jsonb))
        ON CONFLICT (rule, COALESCE(namespace, ''), subject) WHERE state <> 'resolved' DO UPDATE
            SET last_seen = now(), sentence = EXCLUDED.sentence, value = EXCLUDED.value, usual = EXCLUDED.usual,
                low = EXCLUDED.low, high = EXCLUDED.high, facts = EXCLUDED.facts
        RETURNING a.id, a.first_seen, xmax = 0 AS is_new
    """
)
RESOLVE = text(
    """
    UPDATE alerts SET state = 'resolved', resolved_at = now(), changed_at = now(),
            facts = CASE state WHEN 'silenced' THEN facts || '{"silenced": true}' ELSE facts END
        WHERE state <> 'resolved' AND rule = ANY (:rules) AND last_seen <= now() - CAST(:quiet AS interval)
        RETURNING id, rule, subject
    """
).bindparams(bindparam("rules", type_=ARRAY(TEXT)))
MATCHES = """
    SELECT FROM alert_silences s WHERE s.until_at > now() AND (s.namespace IS NULL OR s.namespace = a.namespace)
        AND (s.rule IS NULL OR s.rule IN (a.rule, '*') OR right(s.rule, 2) = '.*'
                AND starts_with(a.rule, left(s.rule, -1)))
        AND (s.agent IS NULL OR s.agent = a.agent) AND (s.capability IS NULL OR s.capability = a.capability)
        AND (s.subject IS NULL OR s.subject = a.subject)
"""
SILENCE = text(f"""
    UPDATE alerts a SET state = CASE a.state WHEN 'firing' THEN 'silenced' ELSE 'firing' END, changed_at = now()
        WHERE a.state = 'firing' AND EXISTS ({MATCHES}) OR a.state = 'silenced' AND NOT EXISTS ({MATCHES})
""")  # noqa: S608 - constants
FORGET_SILENCES = text("DELETE FROM alert_silences WHERE until_at < now() - interval '30 days'")
FORGET_OLD = text(
    "DELETE FROM alerts WHERE state = 'resolved' AND changed_at < now() - CAST(:days AS integer) * interval '1 day'"
)
FORGET_MANY = text(
    "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE state = 'resolved' ORDER BY id DESC OFFSET :most)"
)
FORGET_RECEIVERS = text("DELETE FROM alert_receivers WHERE used_at < now() - interval '30 days'")
FORGET_HOURS = text(
    "DELETE FROM watched_hours WHERE bucket < now() - interval '90 days' OR bucket > now() + interval '1 day'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rule has found.

    Attributes:
        subject: what it is about; with the rule and the namespace, the identity of an alert.
        facts: more for programs.
    """

    rule: str
    subject: str
    sentence: str
    namespace: str | None = None
    agent: str | None = None
    capability: str | None = None
    value: float | None = None
    usual: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """An alert that began or ended."""

    rule: str
    subject: str
    state: str


def sync(
    connection: Connection, rules: Collection[str], found: Iterable[Found], quiet: timedelta = timedelta()
) -> list[Change]:
    """Bring the open alerts of some rules to what they have found now; return those that began or ended.

    Args:
        quiet: how long nothing must have been found for an alert to be resolved.
    """
    changes = []
    connection.execute(ONE_AT_A_TIME)
    for each in found:
        values: dict[str, Any] = asdict(each)
        values |= {"subject": name_of(each.subject), "sentence": one_line(storable(each.sentence))[:LONGEST_SENTENCE]}
        row = connection.execute(SEE, values | {"facts": json.dumps(storable(each.facts), default=str)}).one()
        if row.is_new:
            changes.append(Change(each.rule, values["subject"], "firing"))
    # What was seen in this transaction has its time; a quiet period of zero must leave it.
    ended = connection.execute(RESOLVE, {"rules": list(rules), "quiet": max(quiet, timedelta(microseconds=1))})
    changes += [Change(row.rule, row.subject, "resolved") for row in ended]
    apply_silences(connection)
    return changes


def apply_silences(connection: Connection) -> None:
    """Silence what a silence matches, and end the silence of what none matches any more."""
    connection.execute(ONE_AT_A_TIME)
    connection.execute(SILENCE)


def tidy(connection: Connection) -> None:
    """Forget what is old, and more than is kept."""
    connection.execute(FORGET_SILENCES)
    connection.execute(FORGET_OLD, {"days": KEPT_DAYS})
    connection.execute(FORGET_MANY, {"most": MOST_KEPT})
    connection.execute(FORGET_RECEIVERS)
    connection.execute(FORGET_HOURS)


def name_of(text: str) -> str:
    """Return a name for people and for the index: on one line, not too long."""
    shown = one_line(storable(text))
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
