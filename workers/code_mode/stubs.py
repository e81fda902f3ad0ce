"""Functions of a program as typed Python stubs, from the schemas of their tools.

Names and descriptions may come from other systems, so none of them can leave its place in the text.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.contracts.code_mode import function_name
from shared.contracts.visible_text import one_line, visible
from workers.tools.approval import ApprovedTool
from workers.tools.base import Tool

DEEPEST = 4
"""Levels of objects in an object, below which a type is `Any`."""
MOST_TYPES = 300
"""Types in one schema. Parts that refer to each other could otherwise be written without end."""
MOST_VALUES = 20
MOST_NOTES = 60
LONGEST_SUMMARY = 200
LONGEST_NOTE = 500
LONGEST_DESCRIPTION = 4_000
APPROVED = "A person must approve each call."
_PLAIN = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "object": "dict[str, Any]",
    "array": "list[Any]",
}
_INDENT = "    "
Schema = Mapping[str, Any]


def stub(tool: Tool, name: str | None = None) -> str:
    """Return the function of a tool: its signature, and its documentation with the types of objects.

    Args:
        name: of the function, if it does not follow from that of the tool.
    """
    schema = tool.input_schema or {}
    types = _Types(schema)
    signature = f"async def {name or function_name(tool.name)}({types.parameters()}) -> {_returned(tool)}:"
    documentation = [_text(tool.description or "", LONGEST_DESCRIPTION)]
    if isinstance(tool, ApprovedTool):
        documentation.append(APPROVED)
    documentation += types.notes()
    lines = [line for part in documentation if part for line in part.split("\n")]
    return "\n".join([signature, *_docstring(lines)])


def summary(tool: Tool) -> str:
    """Return the function's name and the first line of its description."""
    first = _text((tool.description or "").strip().partition("\n")[0], LONGEST_SUMMARY)
    return f"{function_name(tool.name)}: {first}" if first else function_name(tool.name)


class _Types:
    """Types of a schema, which may refer to its own parts."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._left = MOST_TYPES
        self._required = frozenset(schema.get("required") or ())
        self._properties: Schema = schema.get("properties") or {}
        self._types = {name: self.of(part) for name, part in self._properties.items()}

    def parameters(self) -> str:
        """Return the parameters of a function with this input."""
        named = [name for name in self._properties if is_parameter(name)]
        # Those without a default come first, as a reader expects.
        named.sort(key=lambda name: name not in self._required)
        parts = [f"{name}: {self._in_signature(name)}" for name in named]
        if not self._closed or len(named) < len(self._properties):
            parts.append("**more: Any")
        return ", ".join(["*", *parts] if named else parts)

    def notes(self) -> list[str]:
        """Return a line for each argument that has more to say than its type in the signature."""
        notes = (self._note(name, part) for name, part in self._properties.items())
        return [note for note in notes if note][:MOST_NOTES]

    def of(self, schema: Any, depth: int = 0) -> str:
        """Return the type of a schema. Objects are written as dictionaries of types; `?` is an optional member."""
        schema = self._resolved(schema)
        self._left -= 1
        if self._left < 0 or depth > DEEPEST or not isinstance(schema, Mapping) or not schema:
            return "Any"
        if "const" in schema or "enum" in schema:
            return _literal(schema["enum"] if "enum" in schema else [schema["const"]])
        for keyword_ in ("anyOf", "oneOf"):
            if schema.get(keyword_):
                return _union(self.of(each, depth + 1) for each in schema[keyword_])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _union(self.of({**schema, "type": each}, depth) for each in kind)
        if schema.get("properties") and kind in (None, "object"):
            return self._object(schema, depth)
        if kind == "array" and "items" in schema:
            return f"list[{self.of(schema['items'], depth + 1)}]"
        if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
            return f"dict[str, {self.of(schema['additionalProperties'], depth + 1)}]"
        return _PLAIN.get(str(kind), "Any")

    @property
    def _closed(self) -> bool:
        return bool(self._properties) or self._root.get("additionalProperties") is False

    def _note(self, name: str, part: Any) -> str:
        note, written = _description_of(part), self._types[name]
        if not is_parameter(name):
            optional = "" if name in self._required else ", optional"
            called = f'**{{"{_quoted(name)}": …}} ({written}{optional})'
            return f"{called}: {note}" if note else called
        shape = written if "{" in written else ""
        said = ". ".join(each for each in (note.rstrip("."), shape) if each)
        return f"{name}: {said}" if said else ""

    def _in_signature(self, name: str) -> str:
        written = "dict" if "{" in self._types[name] else self._types[name]
        return written if name in self._required else f"{written} = ..."

    def _object(self, schema: Schema, depth: int) -> str:
        required, members = schema.get("required") or (), list[str]()
        for name, part in schema["properties"].items():
            if self._left < 0:
                members.append("…")
                break
            members.append(f'"{_quoted(name)}"{"" if name in required else "?"}: {self.of(part, depth + 1)}')
        return f"{{{', '.join(members)}}}"

    def _resolved(self, schema: Any) -> Any:
        """Follow references into the schema itself; others, and those that lead nowhere, are unknown."""
        for _ in range(DEEPEST):
            if not isinstance(schema, Mapping) or not isinstance(reference := schema.get("$ref"), str):
                return schema
            schema = _part(self._root, reference)
        return None


def _returned(tool: Tool) -> str:
    return _Types(tool.output_schema).of(tool.output_schema) if tool.output_schema else "Any"


def _part(root: Schema, reference: str) -> Any:
    found: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found if reference.startswith("#") else None


def is_parameter(name: str) -> bool:
    """Return whether a function can have a parameter with this name."""
    return name.isidentifier() and not keyword.iskeyword(name)


def _union(types: Iterator[str]) -> str:
    return " | ".join(dict.fromkeys(types))


def _literal(values: Any) -> str:
    listed = list(values)[:MOST_VALUES]
    more = ", …" if len(values) > MOST_VALUES else ""
    return f"Literal[{', '.join(_value(value) for value in listed)}{more}]"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    return _plain(json.dumps(value, ensure_ascii=False))[:LONGEST_NOTE]


def _description_of(schema: Any) -> str:
    if not isinstance(schema, Mapping) or not isinstance(schema.get("description"), str):
        return ""
    return _text(schema["description"], LONGEST_NOTE).replace("\n", " ")


def _quoted(name: str) -> str:
    return _plain(json.dumps(name, ensure_ascii=False)[1:-1])


def _plain(text: str) -> str:
    return one_line(text).replace('"""', "'''")


def _text(text: str, longest: int) -> str:
    """Return a description that cannot end its docstring, or pass for anything but text."""
    cleaned = re.sub(r"[ \t]*\n\s*", "\n", visible(text).strip()).replace('"""', "'''").replace("\\", "\\\\")
    return cleaned if len(cleaned) <= longest else f"{cleaned[:longest]}…"


def _docstring(lines: list[str]) -> list[str]:
    if not lines:
        return [f"{_INDENT}..."]
    if len(lines) == 1:
        return [f'{_INDENT}"""{_closable(lines[0])}"""']
    return [f'{_INDENT}"""{lines[0]}', *(f"{_INDENT}{line}" for line in lines[1:]), f'{_INDENT}"""']


def _closable(line: str) -> str:
    return f"{line} " if line.endswith('"') else line
