"""Pauses and limits: what people say about when tasks may start. Rows, so that they outlive every process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import Connection, text

from shared.errors import InvalidInput, NotFound

Scope = Literal["capability", "agent", "key"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
EACH = "*"
MAX_NAME = 255

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_RATE = re.compile(r"^(\d{1,9})/(\d{0,9})(s|m|min|h|d)$")

PAUSE = text(
    "INSERT INTO pauses (namespace, scope, name, reason) VALUES (:namespace, :scope, :name, :reason) "
    "ON CONFLICT (namespace, scope, name) DO UPDATE SET reason = COALESCE(EXCLUDED.reason, pauses.reason) "
    "RETURNING namespace, scope, name, reason, created_at"
)
RESUME = text("DELETE FROM pauses WHERE namespace = :namespace AND scope = :scope AND name = :name RETURNING 1")
PAUSES = text("SELECT namespace, scope, name, reason, created_at FROM pauses ORDER BY namespace, scope, name")
SET_LIMIT = text(
    "INSERT INTO limits (namespace, scope, name, max_running, rate, period_seconds) "
    "VALUES (:namespace, :scope, :name, :max_running, :rate, :period_seconds) "
    "ON CONFLICT (namespace, scope, name) DO UPDATE SET max_running = EXCLUDED.max_running, rate = EXCLUDED.rate, "
    "period_seconds = EXCLUDED.period_seconds "
    "RETURNING namespace, scope, name, max_running, rate, period_seconds, created_at"
)
REMOVE_LIMIT = text("DELETE FROM limits WHERE namespace = :namespace AND scope = :scope AND name = :name RETURNING 1")
LIMITS = text(
    "SELECT namespace, scope, name, max_running, rate, period_seconds, created_at FROM limits "
    "ORDER BY namespace, scope, name"
)
# What waited may start now.
LET_GO = text(
    "WITH gone AS (DELETE FROM rate_holds WHERE namespace = :namespace AND scope = :scope "
    "AND (name = :name OR :name = '*')) SELECT minion_notify_pending()"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many starts in a period of so many seconds."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, written: str) -> Rate:
        """From `10/s`, `100/5m`, `1000/h` or `5000/d`.

        Raises:
            InvalidInput: it is not written like that.
        """
        match = _RATE.match(written.strip())
        if match is None or int(match[1]) == 0 or match[2] in ("0", "00"):
            raise InvalidInput(f"A rate is written like 10/s, 100/5m or 1000/h, not {written[:50]!r}.")
        return cls(int(match[1]), int(match[2] or 1) * _UNITS[match[3]])


def pause(
    connection: Connection, scope: Scope, name: str, *, reason: str | None = None, namespace: str = "default"
) -> dict[str, Any]:
    """Keeps the tasks of a capability, an agent or a key from starting. What runs goes on. May be repeated."""
    values = {**_target(scope, name, namespace), "reason": reason}
    return dict(connection.execute(PAUSE, values).mappings().one())


def resume(connection: Connection, scope: Scope, name: str, *, namespace: str = "default") -> None:
    """Lets them start again.

    Raises:
        NotFound: it is not paused.
    """
    values = _target(scope, name, namespace)
    if connection.scalar(RESUME, values) is None:
        raise NotFound(f"The {scope} {name!r} is not paused.")
    connection.execute(LET_GO, values)


def list_pauses(connection: Connection) -> list[dict[str, Any]]:
    """All pauses, by namespace, scope and name."""
    return [dict(row) for row in connection.execute(PAUSES).mappings()]


def set_limit(
    connection: Connection,
    scope: Scope,
    name: str,
    *,
    max_running: int | None = None,
    rate: Rate | None = None,
    namespace: str = "default",
) -> dict[str, Any]:
    """Limits how many tasks of a capability, an agent or a key run at once, or start in a period; replaces a limit
    that is there.

    Args:
        name: or `*`, for each that has no limit of its own.

    Raises:
        InvalidInput: neither is given, or a number makes no sense.
    """
    if max_running is None and rate is None:
        raise InvalidInput("A limit says how many tasks may run at once, at what rate they may start, or both.")
    if max_running is not None and not 0 <= max_running <= 1_000_000:
        raise InvalidInput("At least 0 and at most 1,000,000 tasks may run at once.")
    values = {
        **_target(scope, name, namespace),
        "max_running": max_running,
        "rate": rate.count if rate else None,
        "period_seconds": rate.seconds if rate else None,
    }
    row = dict(connection.execute(SET_LIMIT, values).mappings().one())
    connection.execute(LET_GO, values)
    return row


def remove_limit(connection: Connection, scope: Scope, name: str, *, namespace: str = "default") -> None:
    """Takes a limit away.

    Raises:
        NotFound: there is none.
    """
    values = _target(scope, name, namespace)
    if connection.scalar(REMOVE_LIMIT, values) is None:
        raise NotFound(f"There is no limit for the {scope} {name!r}.")
    connection.execute(LET_GO, values)


def list_limits(connection: Connection) -> list[dict[str, Any]]:
    """All limits, by namespace, scope and name."""
    return [dict(row) for row in connection.execute(LIMITS).mappings()]


def _target(scope: str, name: str, namespace: str) -> dict[str, Any]:
    if scope not in SCOPES:
        raise InvalidInput(f"One pauses and limits a {', a '.join(SCOPES)}, not a {scope[:50]!r}.")
    if not 0 < len(name) <= MAX_NAME or "\0" in name:
        raise InvalidInput(f"The name of a {scope} has 1 to {MAX_NAME} characters.")
    return {"scope": scope, "name": name, "namespace": namespace}
