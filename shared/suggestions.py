"""Suggestions of similar names."""

from __future__ import annotations

from difflib import get_close_matches

from sqlalchemy import Connection, text

MAX_NAMES = 1000  # to compare
AGENTS = text(
    "SELECT name FROM agents WHERE namespace = :namespace AND active_version_id IS NOT NULL ORDER BY name LIMIT :most"
)


def similar_agents(connection: Connection, namespace: str, name: str) -> str:
    """Return a sentence with similar agent names, preceded by a space; an empty string if there are none."""
    known = {
        agent.casefold(): agent for agent in connection.scalars(AGENTS, {"namespace": namespace, "most": MAX_NAMES})
    }
    found = [repr(known[match]) for match in get_close_matches(name[:255].casefold(), known, cutoff=0.7)]
    return f" Did you mean {' or '.join(found)}?" if found else ""
