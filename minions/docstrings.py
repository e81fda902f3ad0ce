"""Descriptions in docstrings: of a function, and of its parameters (Google's `Args:`, or Sphinx' `:param name:`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(
    r"(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?|Attributes|Warnings?|See Also):[ ]*"
)
PARAMETERS = frozenset({"Args", "Arguments", "Parameters"})
GOOGLE = re.compile(r"\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)")
SPHINX = re.compile(r":(\w+)(?:\s+[^:]*?(\w+))?:\s*(.*)")


def description_of(function: Any) -> str:
    """Return the text of a docstring before its first section; empty if there is none."""
    lines: list[str] = []
    for line in _lines(function):
        if SECTION.fullmatch(line) or SPHINX.match(line):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def parameter_descriptions(function: Any) -> dict[str, str]:
    """Return the descriptions of parameters by name, each on one line."""
    return {**dict(_google(_lines(function))), **dict(_sphinx(_lines(function)))}


def _lines(function: Any) -> list[str]:
    return inspect.cleandoc(getattr(function, "__doc__", None) or "").splitlines()


def _google(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the entries of the section of parameters. What is indented further continues an entry."""
    body = _section(lines)
    margin = min((_indent(line) for line in body if line.strip()), default=0)
    name, words = "", [""]
    for line in body:
        match = GOOGLE.fullmatch(line.strip()) if _indent(line) == margin else None
        if match:
            if name:
                yield name, " ".join(words).strip()
            name, words = match[1], [match[2]]
        elif line.strip():
            words.append(line.strip())
    if name:
        yield name, " ".join(words).strip()


def _section(lines: list[str]) -> list[str]:
    for number, line in enumerate(lines):
        if (match := SECTION.fullmatch(line)) and match[1] in PARAMETERS:
            rest = lines[number + 1 :]
            end = next((at for at, each in enumerate(rest) if each.strip() and _indent(each) == 0), len(rest))
            return rest[:end]
    return []


def _sphinx(lines: list[str]) -> Iterator[tuple[str, str]]:
    name, words = "", [""]
    for line in [*lines, ":end:"]:
        match = SPHINX.match(line)
        if match or not line.strip():
            if name:
                yield name, " ".join(words).strip()
            name, words = (match[2] or "", [match[3]]) if match and match[1] == "param" else ("", [""])
        elif name:
            words.append(line.strip())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
