"""Text that PostgreSQL cannot store: U+0000, and unpaired surrogates, which are not valid Unicode."""

from __future__ import annotations

import re
from typing import Any

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
NO_TEXT = re.compile("[\0\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def storable(value: Any, unfit: re.Pattern[str] = NO_TEXT) -> Any:
    """Return JSON with U+FFFD for every character that cannot be stored.

    Args:
        unfit: the characters to replace.
    """
    match value:
        case str():
            return unfit.sub(REPLACEMENT, value)
        case list():
            return [storable(item, unfit) for item in value]
        case dict():
            return {storable(name, unfit): storable(item, unfit) for name, item in value.items()}
    return value
