"""Durations in definitions: a whole number and a unit, such as `90s`, `15m`, `1h` or `7d`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST = "30d"

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def seconds_of(duration: str) -> int:
    """Return the seconds of a valid duration."""
    return int(duration[:-1]) * SECONDS[duration[-1]]


def _checked(value: Any) -> Any:
    # YAML reads `60` as a number, and `1:30` as one too.
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError("a duration must be a whole number with a unit (s, m, h or d), such as 90s, 15m, 1h or 7d")
    if not 1 <= seconds_of(value) <= seconds_of(LONGEST):
        raise ValueError(f"a duration must be between 1s and {LONGEST}; {value} is not")
    return value


Duration = Annotated[str, BeforeValidator(_checked, json_schema_input_type=str)]
