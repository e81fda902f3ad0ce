"""The pages that each page leads to: in its bar, under "More", and in its list of shortcuts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.pages.rights import RULES
from shared.access.actors import Key


class Place(NamedTuple):
    """A page without parameters.

    Attributes:
        keys: its keyboard shortcut.
    """

    address: str
    title: str
    keys: str


MAIN = (
    Place("/overview", "Overview", "g o"),
    Place("/tasks", "Tasks", "g t"),
    Place("/inbox", "Inbox", "g i"),
    Place("/agents", "Agents", "g a"),
    Place("/errors", "Errors", "g e"),
    Place("/workers", "Workers", "g w"),
    Place("/analytics", "Analytics", "g s"),
)
MORE = (
    Place("/capabilities", "Capabilities", "g c"),
    Place("/functions", "Functions", "g f"),
    Place("/tools", "Tools", "g x"),
    Place("/bulk-acts", "Bulk acts", "g v"),
    Place("/alerts", "Alerts", "g l"),
    Place("/schedules", "Schedules", "g h"),
    Place("/limits", "Limits", "g m"),
    Place("/budgets", "Budgets", "g b"),
    Place("/webhooks", "Webhooks", "g n"),
    Place("/secrets", "Secrets", "g r"),
    Place("/files", "Files", "g d"),
    Place("/memory", "Memory", "g y"),
    Place("/keys", "Keys", "g k"),
    Place("/audit", "Audit", "g u"),
)


def reachable(places: Iterable[Place], key: Key | None) -> list[Place]:
    """Return the places that a key may see; all for a reader without a login, who is led to the login."""
    return [place for place in places if key is None or RULES[f"GET {place.address}"].permits(key)]
