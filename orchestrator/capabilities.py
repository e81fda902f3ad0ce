"""Lists of capabilities in text form: `inspect,classify`."""

from __future__ import annotations

import re


def parse_capabilities(text: str) -> str:
    """Return a normalised list of capabilities, separated by commas, without spaces.

    Raises:
        ValueError: a name is empty, or not valid for a capability.
    """
    from shared.contracts.documents import CAPABILITY  # with all of pydantic's models: most commands need none

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(CAPABILITY, name):
            raise ValueError(
                f"{name!r} is not the name of a capability: it must begin with a lower-case letter or a digit and "
                "contain only those, '_', '.' and '-', at most 63 characters. Separate several names with commas: "
                "inspect,classify."
            )
    return ",".join(dict.fromkeys(names))
