"""The packages that functions may import, as live workers report them: see `docs/packages.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.sandbox import SAFE_IMPORTS
from shared.sandbox.confined.modules import is_allowed
from shared.settings import get_settings

# Workers of release 0.2 report no packages.
REPORTED = text(
    """
    SELECT c.name, array_agg(DISTINCT p.name) FILTER (WHERE p.name IS NOT NULL) AS packages
        FROM workers w CROSS JOIN unnest(w.capabilities) AS c (name) LEFT JOIN unnest(w.packages) AS p (name) ON true
        WHERE w.status = 'online' AND w.last_seen > now() - CAST(:lease AS interval) AND w.packages IS NOT NULL
        GROUP BY c.name
    """
)


@dataclass(frozen=True, slots=True)
class WorkerPackages:
    """For each capability with a live worker: the packages that at least one of these workers preloads."""

    by_capability: Mapping[str, frozenset[str]]

    @classmethod
    def reported(cls, session: Session) -> WorkerPackages:
        """Return the packages that live workers report now."""
        rows = session.execute(REPORTED, {"lease": timedelta(seconds=get_settings().lease_seconds)})
        return cls({name: frozenset(packages or ()) for name, packages in rows})

    def missing(self, imports: Iterable[str], capability: str | None = None) -> list[str]:
        """Return the imports that are neither safe nor preloaded by a worker; empty if no worker reports its packages.

        Args:
            imports: names of modules.
            capability: limits the check to its workers; None for all.
        """
        if capability is None:
            reported = list(self.by_capability.values())
        else:
            reported = [self.by_capability[capability]] if capability in self.by_capability else []
        known = SAFE_IMPORTS.union(*reported)
        return [name for name in imports if not is_allowed(name, known)] if reported else []
