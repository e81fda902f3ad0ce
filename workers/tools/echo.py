"""The builtin tool `echo`: returns its input. Useful for trying and measuring the whole path."""

from __future__ import annotations

from typing import Any


def echo(arguments: Any, context: Any) -> Any:
    """Return the arguments."""
    return arguments
