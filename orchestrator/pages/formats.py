"""How pages write values: times, durations, money, and payloads as text that is exact and harmless."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from shared.contracts.visible_text import one_line, visible

LONGEST_TEXT = 20_000
"""Characters of a payload that a page shows; a link leads to the rest."""
LONGEST_WORD = 24
"""Characters that stay on one line."""
WORDS = re.compile(r"[\s-]")
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


ENCODER = json.JSONEncoder(ensure_ascii=False, indent=2, default=str)


class Shown:
    """A payload as text.

    Attributes:
        text: JSON, or a text as it is; characters that cannot be seen are written as JSON's escapes.
        is_cut: there is more.
    """

    def __init__(self, value: Any) -> None:
        begun = value if isinstance(value, str) else _beginning(value)
        self.is_cut = len(begun) > LONGEST_TEXT
        self.text = visible(begun[:LONGEST_TEXT])


def as_json(value: Any) -> str:
    """Return a value as indented JSON."""
    return ENCODER.encode(value)


def as_text(value: Any) -> str:
    """Return a text as it is, and other values as indented JSON."""
    return value if isinstance(value, str) else as_json(value)


def _beginning(value: Any) -> str:
    """Return the beginning of a value's JSON: encoding megabytes takes long."""
    parts, length = [], 0
    for part in ENCODER.iterencode(value):
        parts.append(part)
        length += len(part)
        if length > LONGEST_TEXT:
            break
    return "".join(parts)


def moment(value: datetime | None) -> Markup:
    """Return a time in UTC, and how long ago that was; scripts keep the latter up to date."""
    if value is None:
        return Markup("–")
    value = value.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC <span class="ago" data-ago>({})</span></time>').format(
        value.isoformat(timespec="milliseconds"), value.strftime("%Y-%m-%d %H:%M:%S"), ago(value)
    )


def ago(value: datetime) -> str:
    """Return how long ago a time was, or how far in the future it is."""
    seconds = (datetime.now(UTC) - value).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def duration(seconds: float | None) -> str:
    """Return a duration in at most two units."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    parts: list[str] = []
    left = round(seconds)
    for size, unit in UNITS:
        if left >= size and len(parts) < 2:
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts)


def between(begin: datetime | None, end: datetime | None) -> str:
    """Return the time between two moments; until now, if there is no second one."""
    if begin is None:
        return "–"
    return duration(((end or datetime.now(UTC)) - begin).total_seconds())


def money(microdollars: float | None) -> str:
    """Return an amount in dollars."""
    dollars = (microdollars or 0) / 1e6
    if dollars == 0:
        return "$0"
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.4f}"


def number(value: float | None) -> str:
    """Return a number with separators."""
    return "–" if value is None else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Return a number of bytes in a unit of 1,000."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def name(value: Any) -> Markup:
    """Return a name that a user or a model chose, isolated from the direction of the text around it."""
    text = one_line(str(value))
    if max(map(len, WORDS.split(text))) > LONGEST_WORD:
        return Markup('<bdi class="long">{}</bdi>').format(text)
    return Markup("<bdi>{}</bdi>").format(text)


def with_code(value: str | None) -> Markup:
    """Return a sentence of ours with its parts in backticks as code. What it quotes cannot become markup."""
    parts = visible(value or "").split("`")
    marked = [
        Markup("<code>{}</code>").format(part) if index % 2 and index < len(parts) - 1 else escape(part)
        for index, part in enumerate(parts)
    ]
    return Markup("").join(marked)


FILTERS = {
    "moment": moment,
    "ago": ago,
    "duration": duration,
    "money": money,
    "number": number,
    "size": size,
    "name": name,
    "with_code": with_code,
    "shown": Shown,
    "as_json": as_json,
}
