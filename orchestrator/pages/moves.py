"""The acts that a reader may do: the same rules as of the endpoints behind them."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.pages.rights import RULES, TASK
from shared.access.actors import Key


def permitted(key: Key) -> Callable[[str], bool]:
    """Return whether a key may do an act about a task, such as `cancel`: pages show no other buttons."""
    return lambda act: RULES[f"POST {TASK}/{act}"].permits(key)
