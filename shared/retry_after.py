"""The `Retry-After` header (RFC 9110, 10.2.3) of whoever wants to be left alone for a while."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, 0 at least; None where the header is missing or cannot be read.

    Args:
        headers: names in lower case, or a mapping that does not mind. `retry-after-ms`, which Anthropic's API may send,
            is more exact and comes first.
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
    """A date of HTTP, or of RFC 3339, which some send; without a zone it is UTC."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(said)
        # What cannot be a number of C overflows.
        except (ValueError, OverflowError):
            continue
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    return None
