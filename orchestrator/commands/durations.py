"""Durations as options: 90s, 5m, 12h, 7d."""

from __future__ import annotations

import re

import typer

from shared.contracts.durations import SECONDS

MOST_DAYS = 36_500
"""A time longer ago, or later, may have no date."""


def seconds_of(duration: str, option: str) -> float:
    """Return a duration in seconds.

    Raises:
        BadParameter: it is written in another way or too long; the message names the option.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])", duration)
    if match is None:
        raise typer.BadParameter(f"{option} must be a number with s, m, h or d, such as 5m, not {duration!r}")
    seconds = float(match[1]) * SECONDS[match[2]]
    if seconds > MOST_DAYS * SECONDS["d"]:
        raise typer.BadParameter(f"{option} must be at most {MOST_DAYS}d, not {duration!r}")
    return seconds
