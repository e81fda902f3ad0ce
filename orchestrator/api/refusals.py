"""Refused requests, counted by key, address and minute: one row of the audit log for each such group.

A flood of refused requests costs no statement while it lasts, and a bounded amount of memory: when there are many
groups, further addresses are counted together.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from shared.access.actors import Actor, Key, unknown_key
from shared.audit import log
from shared.errors import Unauthorized

ACT = "access.refused"
MOST_GROUPS = 1000
MOST_KINDS = 20
OTHERS = "(others)"
FURTHER = 0
"""In place of the minute, in the key of groups in which further addresses are counted."""


@dataclass(slots=True)
class Group:
    """Refusals of one key from one address in one minute.

    Attributes:
        kinds: their number by status and missing permission: `401`, `403 tasks:cancel`.
    """

    actor: Actor
    minute: int
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, count: int = 1) -> None:
        """Count refusals of a kind."""
        self.kinds[kind if kind in self.kinds or len(self.kinds) < MOST_KINDS else OTHERS] += count

    def facts(self) -> dict[str, Any]:
        """Return the counts, for the audit log."""
        minute = datetime.fromtimestamp(self.minute * 60, UTC).isoformat(timespec="minutes")
        return {"minute": minute, "refused": self.kinds.total(), "kinds": dict(self.kinds)}


class Refusals:
    """Counts refused requests, and writes the counts of past minutes. May be called from any thread.

    Args:
        database: where the rows are written.
    """

    def __init__(self, database: Engine) -> None:
        self._database = database
        self._groups: dict[tuple[int, str, str | None], Group] = {}
        self._lock = threading.Lock()

    def count(self, key: Key | None, address: str | None, error: Unauthorized) -> None:
        """Count a refused request.

        Args:
            key: the key, if it is known; also one that has expired or was revoked.
        """
        permission = error.detail.get("permission")
        with self._lock:
            group = self._group(key or unknown_key(), address, _this_minute(), MOST_GROUPS)
            group.add(f"{error.status} {permission}" if permission else str(error.status))

    def flush(self, *, everything: bool = False) -> None:
        """Write the counts of past minutes; see `Counted`."""
        due = self._take(_this_minute() + everything)
        try:
            with self._database.begin() as connection:
                for group in due:
                    namespace = group.actor.key.scope.namespace
                    log.record(connection, group.actor, ACT, namespace=namespace, after=group.facts())
        except BaseException:
            self._put_back(due)
            raise

    def _take(self, before: int) -> list[Group]:
        with self._lock:
            due = {at: group for at, group in self._groups.items() if group.minute < before}
            for at in due:
                del self._groups[at]
        return list(due.values())

    def _put_back(self, groups: list[Group]) -> None:
        with self._lock:
            for group in groups:
                # Room for those that came in the meantime.
                known = self._group(group.actor.key, group.actor.address, group.minute, 2 * MOST_GROUPS)
                for kind, count in group.kinds.items():
                    known.add(kind, count)

    def _group(self, key: Key, address: str | None, minute: int, most: int) -> Group:
        at = (minute, key.record, address)
        if at not in self._groups and len(self._groups) >= most:
            # Still by key, so that a flood without keys hides none.
            key, address = key if len(self._groups) < most + MOST_GROUPS else unknown_key(), OTHERS
            at = (FURTHER, key.record, OTHERS)
        return self._groups.setdefault(at, Group(Actor(key, address=address), minute))


def _this_minute() -> int:
    return int(time.time() // 60)
