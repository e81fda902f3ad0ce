"""What a catalogue documents: definitions from files, or the active ones of an installation from its API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from minions import Client
from shared.definitions.files import load
from shared.errors import InvalidDefinition

COST_DAYS = 30
KINDS = ("agent", "tool", "function")


@dataclass(slots=True)
class Entry:
    """An agent, a tool or a function.

    Attributes:
        definition: its content, as a version stores it.
        version: the number of the active version; None for one from a file.
        status: of the agent or of the function's version; empty for one from a file.
        versions: all versions, the newest first, with `number`, `checksum` and `created_at`.
        costs: an item of the statistics; None if there is none.
    """

    kind: str
    name: str
    definition: Mapping[str, Any]
    version: int | None = None
    status: str = ""
    versions: Sequence[Mapping[str, Any]] = ()
    costs: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Catalogue:
    """All entries, and the schedules that submit tasks for the agents.

    Attributes:
        source: where it is from, for the reader.
    """

    source: str
    entries: list[Entry]
    schedules: list[Mapping[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[Entry]:
        """Return the entries of a kind, by name."""
        return sorted((entry for entry in self.entries if entry.kind == kind), key=lambda entry: entry.name)

    def find(self, kind: str, name: str) -> Entry | None:
        """Return the entry of that name, if there is one."""
        return next((entry for entry in self.entries if (entry.kind, entry.name) == (kind, name)), None)

    def contract(self, entry: Entry, field_name: str) -> Any:
        """Return the description or a schema of an entry; if it has none, that of the tool or function that it runs."""
        if found := entry.definition.get(field_name):
            return found
        for kind in ("tool", "function"):
            reference = entry.definition.get(kind)
            target = self.find(kind, bare(reference)) if isinstance(reference, str) else None
            if target is not None:
                return self.contract(target, field_name)
        return entry.definition.get(field_name)


def bare(reference: str) -> str:
    """Return the name in a reference such as `find_order@2`."""
    return reference.partition("@")[0]


def from_files(path: Path) -> Catalogue:
    """Return the definitions in a file or folder; needs neither a database nor an API.

    Raises:
        FileFault: a file is missing or cannot be read.
        InvalidDefinition: a definition is not valid, or two have the same kind and name.
    """
    entries: dict[tuple[str, str], Entry] = {}
    for definition in load(path):
        if definition.kind not in KINDS:
            continue
        place = (definition.kind, definition.name)
        if place in entries:
            raise InvalidDefinition(f"{path}: the {place[0]} {place[1]!r} is defined twice.")
        entries[place] = Entry(*place, definition.content())
    return Catalogue("definition files", list(entries.values()))


def from_api(client: Client, namespace: str | None = None) -> Catalogue:
    """Return the active definitions of an installation, with its schedules and the costs of the last 30 days.

    Raises:
        PermissionDenied: the key may not read definitions, schedules or statistics.
    """
    costs = _costs(client, namespace)
    agents = [
        _entry("agent", client.agent(name, namespace), costs.get(name)) for name in _names(client.agents(namespace))
    ]
    tools = [_entry("tool", client.tool(name, namespace)) for name in _names(client.tools(namespace))]
    functions = [_entry("function", client.function(name, namespace)) for name in _names(client.functions(namespace))]
    where = f"the namespace {namespace}" if namespace else "the installation"
    return Catalogue(where, [*agents, *tools, *functions], list(client.schedules(namespace)))


def _names(found: Iterable[Mapping[str, Any]]) -> list[str]:
    return [each["name"] for each in found]


def _entry(kind: str, found: Mapping[str, Any], costs: Mapping[str, Any] | None = None) -> Entry:
    return Entry(
        kind, found["name"], found["definition"], found["version"], found.get("status", ""), found["versions"], costs
    )


def _costs(client: Client, namespace: str | None) -> dict[str, Mapping[str, Any]]:
    since = datetime.now(UTC) - timedelta(days=COST_DAYS)
    found = client.stats(by=["agent"], since=since, namespace=namespace)
    return {item["agent"]: item for item in found["items"]}
