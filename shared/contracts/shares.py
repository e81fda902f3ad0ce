"""Shares of tasks: a percentage, such as `10%` or `0.5%`, of up to two decimals."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

ALL = 10_000
"""In hundredths of a percent, as the database has it."""

_SHARE = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%")


def hundredths_of(share: str) -> int:
    """Return a valid share in hundredths of a percent."""
    whole, _, decimals = share[:-1].partition(".")
    return int(whole) * 100 + int(decimals.ljust(2, "0"))


def share_of(hundredths: int) -> str:
    """Return a share as text: `0.5%`."""
    return f"{hundredths / 100:g}%"


def checked(value: Any) -> str:
    """Return a share.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or not _SHARE.fullmatch(value) or not 1 <= hundredths_of(value) <= ALL:
        raise ValueError("a share must be a percentage between 0.01% and 100%, such as 5% or 0.5%")
    return value


Share = Annotated[str, BeforeValidator(checked, json_schema_input_type=str)]
