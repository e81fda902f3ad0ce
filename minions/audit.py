"""The audit log and erasure, as methods of the client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from minions.transport import PAGE, Transport


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


def _moment(given: datetime | str | None) -> str | None:
    return given.isoformat() if isinstance(given, datetime) else given
