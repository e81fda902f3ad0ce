"""RQ's function; it needs no registration."""

from __future__ import annotations

from typing import Any


def noop(value: Any) -> Any:
    """Return the argument."""
    return value
