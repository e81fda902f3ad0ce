"""Definitions as text, and the differences between two of their versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any, NamedTuple

from fastapi import Query

from orchestrator.api.parameters import NamespaceQuery, Text
from orchestrator.pages.formats import LONGEST_TEXT, as_json
from shared.contracts.documents import stored_definition
from shared.contracts.visible_text import visible
from shared.definitions.files import document_of, write
from shared.errors import MinionError

VERSIONS = 50
MOST_LINES = 2000
"""Lines of each version that are compared: finding the best match takes the square of their number."""
LONGEST_YAML = 100_000
"""Characters; writing longer YAML takes seconds."""


class VersionsQuery(NamespaceQuery):
    """Two versions to compare, and what was just done."""

    a: int | None = Query(None, ge=1, le=2**31 - 1, description="The version before.")
    b: int | None = Query(None, ge=1, le=2**31 - 1, description="The version after; by default the active one.")
    done: Text = ""


class Line(NamedTuple):
    """A line of a difference.

    Attributes:
        kind: `added`, `removed`, `same` or `place`.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The lines that differ between two versions, with three lines around them; empty if nothing does.

    Attributes:
        is_cut: there is more, or more was not compared.
    """

    a: int
    b: int
    lines: list[Line]
    is_cut: bool


def text_of(kind: str, name: str, content: dict[str, Any]) -> str:
    """Return what a reader may see of a definition: YAML without default values, or JSON if it is long."""
    document = {"kind": kind, "name": name, **content}
    if len(json := as_json(document)) > LONGEST_YAML:
        return visible(json)
    with suppress(MinionError):  # a part of a definition, or one that another release wrote
        document = document_of(stored_definition(kind, name, content, None))
    return write(document)


def difference(a: int, before: str, b: int, after: str) -> Difference:
    """Return what changed between the texts of two versions."""
    old, new = before.splitlines(), after.splitlines()
    lines, length = [], 0
    for line in _lines(old[:MOST_LINES], new[:MOST_LINES]):
        length += len(line.text)
        if length > LONGEST_TEXT:
            break
        lines.append(line)
    return Difference(a, b, lines, length > LONGEST_TEXT or max(len(old), len(new)) > MOST_LINES)


def _lines(old: list[str], new: list[str]) -> Iterator[Line]:
    kinds = {"+": "added", "-": "removed", "@": "place"}
    for index, line in enumerate(unified_diff(old, new, lineterm="")):
        if index > 1:  # after the two names
            yield Line(kinds.get(line[0], "same"), line)
