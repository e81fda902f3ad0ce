"""The builtin tool of the agents that the suite prescribes, offered to workers through an entry point."""

from __future__ import annotations

import time
from typing import Any

from shared.errors import MinionError, ToolError


def perform(arguments: dict[str, Any], context: Any) -> Any:
    """Do what the agent's name says; an agent has one tool, and a tool knows the agent by its arguments."""
    match arguments:
        case {"name": name, "seconds": seconds}:
            time.sleep(seconds)
            return f"Hello, {name}!"
        case {"seconds": seconds}:
            time.sleep(seconds)
            return f"Computed for {seconds} s."
        case {"filename": name}:
            return f"Deleted {name}."
        case {"name": name}:
            return f"Hello, {name}!"
        case _:
            return "This is a simple text response for testing."


def slow(arguments: dict[str, Any], context: Any) -> Any:
    """Takes long enough for three reports of progress."""
    time.sleep(1.2)
    return "It is done."


def fail(arguments: dict[str, Any], context: Any) -> Any:
    """Fails, after a task has been made of the call."""
    time.sleep(1.0)
    raise ToolError("This tool intentionally returns an error for testing.")


def fault(arguments: dict[str, Any], context: Any) -> Any:
    """Fails as the installation itself would."""
    time.sleep(1.0)
    raise MinionError("This call intentionally ends with a protocol error.")
