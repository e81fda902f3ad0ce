"""What an agent uses, and what uses it, from the definitions of a catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from orchestrator.catalogue.entries import Catalogue, Entry, bare
from orchestrator.pages.relations import DEPTH, MOST_USES, Node

CHAIN_STEPS = {"parallel": "at once", "router": "may be chosen", "fallback": "attempt {}", "sequential": "step {}"}


def uses_of(catalogue: Catalogue, agent: Entry) -> Node:
    """Return the tree of what an agent uses, down to three agents below each other, with at most 60 parts."""
    root = Node("agent", agent.name)
    nodes, seen, room = [root], {agent.name}, MOST_USES
    for _ in range(DEPTH):
        open_nodes, nodes = nodes, []
        for node in open_nodes:
            entry = catalogue.find("agent", node.name)
            found = list(islice(_used(catalogue, entry), room)) if entry else []
            room -= sum(1 + len(each.uses) for each in found)
            node.uses.extend(found)
            below = [each for used in found for each in (used, *used.uses) if each.kind == "agent"]
            nodes += [each for each in below if each.name not in seen]
            seen |= {each.name for each in below}
            if room <= 0:
                return root
    return root


def users_of(catalogue: Catalogue, kind: str, name: str) -> list[Entry]:
    """Return the agents and tools that name an agent, a tool or a function, by kind and name."""
    entries = [*catalogue.of("agent"), *catalogue.of("tool")]
    return [entry for entry in entries if (kind, name) in set(_named(entry))]


def target_of(tool: Mapping[str, Any]) -> str:
    """Return what a tool calls: a function, agent, builtin tool or MCP server by name, or a URL without its query."""
    kind = str(tool["type"])
    if kind == "http":
        return str(tool["http"]["url"]).partition("?")[0]
    target = tool["mcp"]["server"] if kind == "mcp" else tool.get(kind)
    return bare(target) if isinstance(target, str) else ""


def _used(catalogue: Catalogue, agent: Entry) -> Iterator[Node]:
    definition = agent.definition
    for reference in filter(None, [*definition.get("tools", ()), definition.get("tool")]):
        tool = catalogue.find("tool", bare(reference))
        node = Node("tool", bare(reference), tool.definition["effect"] if tool else "")
        if tool and (target := target_of(tool.definition)):
            node.uses.append(Node(tool.definition["type"], target))
        yield node
    if definition.get("function"):
        yield Node("function", bare(definition["function"]))
    strategy = definition.get("config", {}).get("chain_strategy", "sequential")
    for number, relation in enumerate(definition.get("relations", ()), 1):
        each = f", for each of {relation['for_each']}" if relation.get("for_each") else ""
        yield Node("agent", relation["agent"], CHAIN_STEPS[strategy].format(number) + each)


def _named(entry: Entry) -> Iterator[tuple[str, str]]:
    definition = entry.definition
    for reference in filter(None, [*definition.get("tools", ()), definition.get("tool")]):
        yield "tool", bare(reference)
    for kind in ("function", "agent"):
        if isinstance(definition.get(kind), str):
            yield kind, bare(definition[kind])
    for relation in definition.get("relations", ()):
        yield "agent", relation["agent"]
