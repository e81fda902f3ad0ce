"""The limits that servers of the Chat Completions API report in headers: `x-ratelimit-limit-requests` and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping

from workers.llm.limits import Report

KINDS = ("requests", "tokens")
DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
SECONDS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


def read_reports(headers: Mapping[str, str]) -> dict[str, Report]:
    """Parse the limits in headers; unreadable ones are left out. Tokens are those of input and answer together."""
    reported: dict[str, Report] = {}
    for kind in KINDS:
        limit, remaining, reset = (
            headers.get(f"x-ratelimit-{what}-{kind}", "") for what in ("limit", "remaining", "reset")
        )
        if limit.isdecimal() and int(limit) > 0 and remaining.isdecimal():
            reported[kind] = Report(int(limit), int(remaining), seconds_in(reset))
    return reported


def seconds_in(written: str) -> float:
    """Return the seconds in a duration such as `1s`, `6m0s` or `20ms`, or in a plain number; 0 if it is unreadable."""
    try:
        return max(0.0, float(written))
    except ValueError:
        match = DURATION.fullmatch(written.strip())
    if match is None:
        return 0.0
    return sum(float(number) * unit for number, unit in zip(match.groups(), SECONDS, strict=True) if number)
