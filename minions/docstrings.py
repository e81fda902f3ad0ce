"""Descriptions in docstrings: of a function, and of its parameters.

Parameters are described by Google's `Args:`, Sphinx' `:param name:`, or NumPy's underlined `Parameters`.
"""

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
NUMPY = re.compile(r"-{3,}")
SPHINX = re.compile(r":(\w+)(?:\s+[^:]*?(\w+))?:\s*(.*)")


def description_of(function: Any) -> str:
    """Return the text of a docstring before its first section; empty if there is none."""
    lines: list[str] = []
    written = _lines(function)
    for number, line in enumerate(written, 1):
        underlined = NUMPY.fullmatch("".join(written[number : number + 1]))
        if SECTION.fullmatch(line) or SPHINX.match(line) or (line.strip() and underlined):
            break
        lines.append(line)
    return "\n".join(lines).strip()


def parameter_descriptions(function: Any) -> dict[str, str]:
    """Return the descriptions of parameters by name, each on one line."""
    lines = _lines(function)
    return {**dict(_google(lines)), **dict(_sphinx(lines)), **_numpy(lines)}


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


def _numpy(lines: list[str]) -> dict[str, str]:
    """Return the entries of the underlined section: `name : type`, or several names, and their text indented."""
    heads = [number for number, line in enumerate(lines[1:]) if NUMPY.fullmatch(line)]
    found: dict[str, list[str]] = {}
    for head, end in zip(heads, [*heads, len(lines)][1:], strict=True):
        names: list[str] = []
        for line in lines[head + 2 : end] if lines[head].strip() in PARAMETERS else []:
            if line.strip() and _indent(line) == 0:
                names = [name.strip(" *") for name in line.partition(":")[0].split(",")]
            elif line.strip():
                for name in names:
                    found.setdefault(name, []).append(line.strip())
    return {name: " ".join(words) for name, words in found.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
