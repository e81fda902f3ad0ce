# Generated from minions/aio/audit.py by `make client`: change that file.
"""The audit log and erasure, as methods of the client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from minions.transport import Transport
from minions.wire import PAGE, given, to_json


class Audit:
    """The methods of `minions.Client` that are about the audit log."""

    _transport: Transport

    def audit(
        self,
        *,
        act: str | None = None,
        actor: str | None = None,
        target: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of the audit log, the newest first.

        Args:
            act: an act such as `task.cancel`, or the first part of several: `task`.
            actor: the name of a key or user, or the prefix of a key.
            target: the id or name of the changed object.
            since: the time of the oldest row, with a time zone.
            until: the time after the newest row.

        Raises:
            Forbidden: the client's key lacks the permission `audit:read`.
        """
        chosen = {"act": act, "actor": actor, "target": target, "since": _moment(since), "until": _moment(until)}
        return self._transport.pages("/v1/audit", {**chosen, "limit": PAGE})

    def erase(
        self,
        *,
        tenant: str | None = None,
        conversation_id: str | None = None,
        namespace: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Delete all ended tasks of a tenant or a conversation, with everything that they contain, and its memory.

        Args:
            tenant: the tenant `key` of the tasks.
            conversation_id: their conversation. Give one of both.
            namespace: their namespace; by default `default`.
            dry_run: delete nothing, only count.

        Returns:
            the numbers of deleted `trees`, `tasks` and `memories`; `left`, the root tasks that have not ended;
            `schedules` that still submit such tasks.

        Raises:
            Forbidden: the client's key lacks the permission `tasks:erase`.
        """
        asked = given(tenant=tenant, conversation_id=conversation_id, namespace=namespace, dry_run=dry_run)
        total: dict[str, Any] = {"trees": 0, "tasks": 0, "memories": 0, "left": [], "schedules": []}
        while True:
            page = self._transport.post("/v1/erasures", to_json(asked, what="The request"), safe=True)
            for name in ("trees", "tasks", "memories", "left"):
                total[name] += page[name]
            total["schedules"] = page["schedules"]
            if page["next"] is None:
                return total
            asked["cursor"] = page["next"]


def _moment(given: datetime | str | None) -> str | None:
    return given.isoformat() if isinstance(given, datetime) else given
