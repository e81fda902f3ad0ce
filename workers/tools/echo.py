"""The builtin tool `echo`: returns its input. For trying the way through, and for measuring it."""

from __future__ import annotations

from typing import Any


def echo(arguments: Any, context: Any) -> Any:
    """What went in."""
    return arguments
