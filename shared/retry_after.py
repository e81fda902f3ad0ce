"""The `Retry-After` header (RFC 9110, 10.2.3) of servers that ask clients to wait."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return seconds from now, at least 0; None if the header is missing or cannot be read.

    Args:
        headers: names in lower case, or a case-insensitive mapping. `retry-after-ms`, which Anthropic's API may send,
            is more exact and takes precedence.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    said = headers.get("retry-after", "").strip()
    seconds = _number(said)
    return seconds if seconds is not None else _until(said)


def _number(said: str) -> float | None:
    try:
        number = float(said)
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _until(said: str) -> float | None:
    """Parse an HTTP date, or an RFC 3339 one, which some servers send; without a zone it is UTC."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(said)
        # Numbers that do not fit a C type overflow.
        except (ValueError, OverflowError):
            continue
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
