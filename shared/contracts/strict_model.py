"""The base of models that are checked to the letter, and their faults as text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, ValidationError

from shared.errors import requirement

MAX_FAULTS = 20


def _moment(value: Any) -> Any:
    """Refuse numbers, which Pydantic would read as seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[T ]", value)):
        return value
    raise ValueError("a time must be written like 2026-11-22T18:00:00Z")


def _representable(value: datetime) -> datetime:
    """Refuse a time that its time zone puts before the year 1 or after the year 9999 in UTC."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time must be in the years 1 to 9999 in UTC") from None
    return value


Moment = Annotated[
    AwareDatetime, BeforeValidator(_moment, json_schema_input_type=datetime), AfterValidator(_representable)
]


class Strict(BaseModel):
    """Base of strictly checked models: unknown fields are refused, not ignored, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


def faults_of(error: ValidationError) -> list[str]:
    """Describe errors with their paths, up to a limit: a hostile document could have a million, with huge names."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    more = [f"and {len(found) - MAX_FAULTS} more"] if len(found) > MAX_FAULTS else []
    return [_fault(fault) for fault in found[:MAX_FAULTS]] + more


def _fault(fault: Any) -> str:
    path = ".".join(_printable(str(part)[:100]) for part in fault["loc"])
    message = requirement(fault["msg"])
    return f"{path}: {message}" if path else message


def _printable(text: str) -> str:
    """Escape every character that a terminal or the database cannot handle."""
    return text if text.isprintable() else repr(text)[1:-1]
