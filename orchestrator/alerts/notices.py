"""What a receiver is to be notified of, and the texts.

A receiver is notified of the state of alerts, not of events: after a day without it, it gets the newest state once. All
alerts of a rule in a window are one message. Names and errors come from callers and models, so texts are plain,
bounded, and without what a chat would obey.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Connection, RowMapping, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PgUUID

from orchestrator.alerts.store import COLUMNS
from shared.contracts.visible_text import one_line
from shared.settings import Settings

MOST_LISTED = 20
MOST_ALERTS = 200
"""Alerts in one message; the others have the next one."""
LONGEST_LINE = 400
CHAT_MARKUP = str.maketrans({"<": "‹", ">": "›", "@": "＠", "`": "'", "[": "(", "]": ")", "*": "∗", "|": "¦"})
"""What Slack, Mattermost and mail readers would make mentions and links of."""
LINK = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*):(?=//)")
BARE_LINK = re.compile(r"(?i)\b(www\d*)\.")
"""What chats and mail readers make a link of, without a scheme."""
NAMES = UUID("5a0c1c0e-9d3f-4c61-8f4e-0d8f8ad1a5b7")

# The state of an alert is due if the receiver does not know it, or if it still fires and was said long ago. What was
# acknowledged or silenced is said only if the receiver knows that it fired, once it is resolved. What ended before a
# receiver was known to us is not its business.
DUE = """
    SELECT a.*, n.state AS notified, n.at AS notified_at FROM alerts a
        JOIN alert_receivers r ON r.name = :receiver
        LEFT JOIN alert_notices n ON n.alert_id = a.id AND n.receiver = r.name
        WHERE (CAST(:namespace AS text) IS NULL OR a.namespace = :namespace)
          AND (a.state = 'firing' OR a.changed_at > now() - interval '8 days')
          AND (a.state = 'firing' AND (n.state IS DISTINCT FROM 'firing' OR n.at <= now() - CAST(:again AS interval))
               OR a.state = 'resolved' AND n.state = 'firing'
               OR a.state = 'resolved' AND n.state IS NULL AND a.acknowledged_at IS NULL
                   AND a.resolved_at > r.created_at AND NOT a.facts ? 'silenced')
"""
# A rule is due when its first news has waited for others, and its last message was long enough ago.
RULES = text(f"""
    WITH due AS ({DUE})
    SELECT d.rule FROM due d GROUP BY d.rule
        HAVING min(CASE WHEN d.notified IS NULL OR d.notified <> d.state THEN d.changed_at ELSE '-infinity' END)
                   NOT BETWEEN now() - CAST(:window AS interval) AND now() + CAST(:window AS interval)
           AND NOT EXISTS (SELECT FROM alert_notices n JOIN alerts o ON o.id = n.alert_id
                               WHERE n.receiver = :receiver AND o.rule = d.rule
                                 AND n.at BETWEEN now() - CAST(:interval AS interval)
                                              AND now() + CAST(:interval AS interval))
        ORDER BY d.rule
""")  # noqa: S608 - constants
OF_RULE = text(
    f"WITH due AS ({DUE}) SELECT {COLUMNS}, a.notified, a.notified_at FROM due a WHERE a.rule = :rule "  # noqa: S608
    "ORDER BY a.state = 'resolved', a.id LIMIT :most"
)
NOTIFIED = text(
    """
    INSERT INTO alert_notices AS n (alert_id, receiver, state)
        SELECT a.id, :receiver, u.state FROM unnest(CAST(:alerts AS uuid[]), CAST(:states AS text[])) AS u (id, state)
            JOIN alerts a ON a.id = u.id JOIN alert_receivers r ON r.name = :receiver
        ON CONFLICT (alert_id, receiver) DO UPDATE SET state = EXCLUDED.state, at = now()
    """
).bindparams(bindparam("alerts", type_=ARRAY(PgUUID)))


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of notifications.

    Attributes:
        window: alerts of a rule that come within this time are one message.
        interval: the least time between two messages about one rule.
        again: an alert that still fires is repeated after this time.
    """

    window: timedelta = timedelta(seconds=30)
    interval: timedelta = timedelta(minutes=5)
    again: timedelta = timedelta(hours=4)


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to one receiver about the alerts of one rule.

    Attributes:
        id: the same if it is sent again.
    """

    id: UUID
    rule: str
    alerts: list[dict[str, Any]]

    @property
    def firing(self) -> list[dict[str, Any]]:
        """The alerts that are not resolved."""
        return [alert for alert in self.alerts if alert["state"] == "firing"]

    @property
    def kind(self) -> str:
        """The type of the message for webhooks."""
        return "alert.firing" if self.firing else "alert.resolved"

    @property
    def title(self) -> str:
        """One line that says it all."""
        firing, resolved = len(self.firing), len(self.alerts) - len(self.firing)
        counts = [f"{number} {state}" for number, state in ((firing, "firing"), (resolved, "resolved")) if number]
        return f"Minions: {self.rule}, {', '.join(counts)}"

    def text(self, base: str | None) -> str:
        """Return the message as plain text.

        Args:
            base: the address of the installation in browsers.
        """
        lines = [_line(alert, base) for alert in self.alerts[:MOST_LISTED]]
        if (more := len(self.alerts) - MOST_LISTED) > 0:
            lines.append(f"and {more} more: minion alerts list --rule {self.rule}")
        return "\n".join(lines)

    def data(self, base: str | None) -> dict[str, Any]:
        """Return the message as data, for webhooks."""
        return {"rule": self.rule, "alerts": [shown(alert, base) for alert in self.alerts]}


def due(connection: Connection, receiver: str, namespace: str | None, pace: Pace) -> list[Notice]:
    """Return the messages that a receiver is to get now."""
    values = {
        "receiver": receiver,
        "namespace": namespace,
        "window": pace.window,
        "interval": pace.interval,
        "again": pace.again,
        "most": MOST_ALERTS,
    }
    notices = []
    for rule in connection.execute(RULES, values).scalars().all():
        alerts = [dict(row) for row in connection.execute(OF_RULE, values | {"rule": rule}).mappings()]
        notices.append(Notice(_id(receiver, alerts), rule, alerts))
    return notices


def mark_notified(connection: Connection, receiver: str, notice: Notice) -> None:
    """Note that a receiver has a message."""
    values = {
        "receiver": receiver,
        "alerts": [alert["id"] for alert in notice.alerts],
        "states": [alert["state"] for alert in notice.alerts],
    }
    connection.execute(NOTIFIED, values)


def shown(alert: RowMapping | dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return an alert as the API shows it, with its link."""
    hidden = ("notified", "notified_at")
    facts = {name: value for name, value in alert["facts"].items() if name not in ("from_hour", "hour")}
    return {name: value for name, value in alert.items() if name not in hidden} | {
        "facts": facts,
        "link": link_of(alert["id"], base),
    }


def link_of(alert: UUID, base: str | None) -> str:
    """Return the address of an alert's page; its path in the API if the installation has no address for browsers."""
    return f"/v1/alerts/{alert}" if base is None else f"{base}/alerts/{alert}"


def base_of(settings: Settings) -> str | None:
    """Return the address that links begin with; None if the installation has none."""
    url = settings.login_url()
    return None if url is None else url + settings.base_path


def harmless(text: str) -> str:
    """Return a text without what chats and mail readers would obey: mentions, markup, links."""
    shown = BARE_LINK.sub(r"\1．", LINK.sub(r"\1：", one_line(text).translate(CHAT_MARKUP)))
    return shown if len(shown) <= LONGEST_LINE else f"{shown[: LONGEST_LINE - 1]}…"


def _line(alert: dict[str, Any], base: str | None) -> str:
    where = "" if alert["namespace"] in (None, "default") else f" (namespace {harmless(alert['namespace'])})"
    state = "resolved" if alert["state"] == "resolved" else "firing"
    link = f" {link_of(alert['id'], base)}" if base else f" minion alerts show {alert['id']}"
    return f"[{state}]{where} {harmless(alert['sentence'])}{link}"


def _id(receiver: str, alerts: Sequence[dict[str, Any]]) -> UUID:
    known = "|".join(f"{alert['id']} {alert['state']} {alert['notified_at']}" for alert in alerts)
    return uuid5(NAMES, f"{receiver}|{known}")
