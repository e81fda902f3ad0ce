"""What an agent uses, as a tree: its tools, functions and agents, and what those use. As a picture, and for a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from shared.contracts.visible_text import one_line

DEPTH = 3
"""Agents below each other that are shown: the page of the last one has the rest."""
MOST_USES = 60
COLUMN, WIDTH, ROW, HEIGHT = 245, 190, 48, 38
LONGEST = 24

USES = text(
    """
    WITH active AS (
        SELECT v.id, v.name, v.tool_version_id, v.function_version_id, v.definition->'config' AS config
            FROM agents a JOIN agent_versions v ON v.id = a.active_version_id
            WHERE a.namespace = :namespace AND a.name = ANY (:agents)
    ), used AS (
        SELECT a.name AS agent, l.position, l.tool_version_id AS tool FROM active a
            JOIN agent_version_tools l ON l.agent_version_id = a.id
        UNION ALL SELECT name, 0, tool_version_id FROM active WHERE tool_version_id IS NOT NULL
    )
    SELECT u.agent, u.position, 'tool' AS kind, t.name, t.effect AS how, t.type,
           COALESCE(f.name, t.definition#>>'{http,url}', t.definition#>>'{mcp,server}', t.definition->>t.type) AS target
        FROM used u JOIN tool_versions t ON t.id = u.tool LEFT JOIN function_versions f ON f.id = t.function_version_id
    UNION ALL SELECT a.name, 0, 'function', f.name, '', NULL, NULL
        FROM active a JOIN function_versions f ON f.id = a.function_version_id
    UNION ALL SELECT a.name, r.position, 'agent', r.agent_name,
               CASE a.config->>'chain_strategy' WHEN 'parallel' THEN 'at once' WHEN 'router' THEN 'may be chosen'
                   WHEN 'fallback' THEN 'attempt ' || r.position + 1 ELSE 'step ' || r.position + 1 END
               || COALESCE(', for each of ' || r.for_each, ''), NULL, NULL
        FROM active a JOIN relations r ON r.agent_version_id = a.id
    ORDER BY 1, 2 LIMIT :most
    """
).bindparams(bindparam("agents", type_=ARRAY(TEXT)))


@dataclass(slots=True)
class Node:
    """An agent, or something that it uses.

    Attributes:
        kind: `agent`, `tool`, `function`, `http`, `mcp` or `builtin`.
        how: how it is used.
    """

    kind: str
    name: str
    how: str = ""
    uses: list[Node] = field(default_factory=list)


def relations_of(connection: Connection, namespace: str, agent: str) -> Node:
    """Return what the active version of an agent uses, down to three agents below each other."""
    root = Node("agent", agent)
    open_agents, seen, room = {agent: root}, {agent}, MOST_USES
    for _ in range(DEPTH):
        values = {"namespace": namespace, "agents": list(open_agents), "most": room}
        owners, open_agents = open_agents, {}
        for row in connection.execute(USES, values):
            room -= 1 if row.target is None else 2
            if room < 0:
                return root
            found = used = Node(row.kind, row.name, row.how)
            if row.target is not None:
                used = Node(row.type, row.target)
                found.uses.append(used)
            owners[row.agent].uses.append(found)
            if used.kind == "agent" and used.name not in seen:
                seen.add(used.name)
                open_agents[used.name] = used
        if not open_agents:
            break
    return root


def named_in(agent: str, definition: Mapping[str, Any]) -> Node:
    """Return what a definition names, for a reader who may not see what that uses in turn."""
    tools = [*definition.get("tools", ()), definition.get("tool")]
    uses = [Node("tool", name.partition("@")[0]) for name in tools if name]
    if function := definition.get("function"):
        uses.append(Node("function", function.partition("@")[0]))
    uses += [Node("agent", relation["agent"]) for relation in definition.get("relations", ())]
    return Node("agent", agent, "", uses[:MOST_USES])


def picture(root: Node) -> Markup:
    """Return the tree as SVG, from left to right; empty if nothing is used."""
    if not root.uses:
        return Markup("")
    placed = list(_placed(root, 0, 0.0))
    width = max(column for _, column, _, _ in placed) * COLUMN + WIDTH + 2
    rows = 1 + max(row for _, _, row, _ in placed)
    places = {id(node): (column, row) for node, column, row, _ in placed}
    lines = [_line(places[id(parent)], (column, row)) for _, column, row, parent in placed if parent is not None]
    boxes = [_box(node, column, row) for node, column, row, _ in placed]
    label = f"{root.name} and what it uses: {len(placed) - 1} parts. The list below has them all."
    return Markup('<svg class="relations" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">{}{}</svg>').format(
        width, round(rows * ROW), width, one_line(label), Markup("").join(lines), Markup("").join(boxes)
    )


def _placed(
    node: Node, column: int, first: float, parent: Node | None = None
) -> Iterator[tuple[Node, int, float, Node | None]]:
    """Yield each node with its column and row, and the node that uses it: leaves fill the rows from the first on."""
    row = first
    for used in node.uses:
        yield from _placed(used, column + 1, row, node)
        row += _leaves(used)
    yield node, column, first + (_leaves(node) - 1) / 2, parent


def _leaves(node: Node) -> int:
    return sum(map(_leaves, node.uses)) or 1


def _line(begin: tuple[int, float], end: tuple[int, float]) -> Markup:
    (left, top), (right, bottom) = begin, end
    return Markup('<path d="M{:.0f} {:.1f}C{:.0f} {:.1f} {:.0f} {:.1f} {:.0f} {:.1f}"/>').format(
        left * COLUMN + WIDTH, y := _middle(top), left * COLUMN + WIDTH + 30, y,
        right * COLUMN - 30, z := _middle(bottom), right * COLUMN, z,
    )  # fmt: skip


def _middle(row: float) -> float:
    return row * ROW + HEIGHT / 2 + 1


def _box(node: Node, column: int, row: float) -> Markup:
    left, top = column * COLUMN + 1, row * ROW + 1
    name = one_line(node.name)
    return Markup(
        '<g class="{}"><title>{}</title><rect x="{}" y="{:.1f}" width="{}" height="{}" rx="4"/>'
        '<text x="{}" y="{:.1f}">{}</text><text class="how" x="{}" y="{:.1f}">{}</text></g>'
    ).format(
        node.kind, name, left, top, WIDTH - 1, HEIGHT, left + 10, top + 16,
        name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…",
        left + 10, top + 31, f"{node.kind}{', ' if node.how else ''}{one_line(node.how)[:30]}",
    )  # fmt: skip
