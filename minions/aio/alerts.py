"""Alerts and silences, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

from minions.aio.transport import AsyncTransport
from minions.wire import PAGE, given, segment, to_json


class AsyncAlerts:
    """The methods of `minions.AsyncClient` that are about alerts."""

    _transport: AsyncTransport

    def alerts(self, *, all: bool = False, **filters: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield alerts, the newest first.

        Args:
            all: also those that are resolved.
            filters: any of `state`, `rule`, `agent`, `capability`, `namespace`.
        """
        return self._transport.pages("/v1/alerts", {**given(**filters), "all": "true" if all else None, "limit": PAGE})

    async def alert(self, alert: str | UUID) -> dict[str, Any]:
        """Return one alert.

        Raises:
            NotFound: there is no such alert.
        """
        found: dict[str, Any] = await self._transport.get(_path(alert))
        return found

    async def acknowledge_alert(self, alert: str | UUID) -> dict[str, Any]:
        """Acknowledge an alert: it is not repeated.

        Raises:
            NotFound: there is no such alert.
            Conflict: it is resolved.
        """
        found: dict[str, Any] = await self._transport.post(f"{_path(alert)}/acknowledge", "{}", safe=True)
        return found

    async def test_alerts(self) -> list[dict[str, Any]]:
        """Send a test message to each address of MINION_ALERT_URLS: `{"receiver", "delivered", "error"}` of each."""
        sent: dict[str, Any] = await self._transport.post("/v1/alerts/test", "{}", safe=False)
        items: list[dict[str, Any]] = sent["items"]
        return items

    def silences(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the silences that have not ended."""
        return self._transport.pages("/v1/silences", {"limit": PAGE})

    async def add_silence(self, *, until: datetime, reason: str, **matcher: Any) -> dict[str, Any]:
        """Silence matching alerts until a time.

        Args:
            until: with a time zone.
            matcher: at least one of `rule` (`anomaly.*`: all that begin so; `*`: all), `agent`, `capability`,
                `subject`; and `namespace`.

        Raises:
            InvalidInput: a field is invalid.
        """
        body = to_json(given(until=until.isoformat(), reason=reason, **matcher), what="The silence")
        added: dict[str, Any] = await self._transport.post("/v1/silences", body, safe=False)
        return added

    async def remove_silence(self, silence: str | UUID) -> None:
        """End a silence.

        Raises:
            NotFound: there is no such silence.
        """
        await self._transport.delete(f"/v1/silences/{segment(silence)}")


def _path(alert: str | UUID) -> str:
    return f"/v1/alerts/{segment(alert)}"
