"""Durations as options: 90s, 5m, 12h, 7d."""

from __future__ import annotations

import re

import typer

from shared.contracts.durations import SECONDS


def seconds_of(duration: str, option: str) -> float:
    """Return a duration in seconds.

    Raises:
        BadParameter: it is written in another way; the message names the option.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd])", duration)
    if match is None:
        raise typer.BadParameter(f"{option} must be a number with s, m, h or d, such as 5m, not {duration!r}")
    return float(match[1]) * SECONDS[match[2]]
