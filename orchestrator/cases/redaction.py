"""Redaction of a case: the values at some JSON paths are replaced, wherever else they occur.

A value usually occurs more than once: in the input, in the model's text, in a call and in its result. Equal values get
the same replacement, so that a replay of the case still takes the recorded path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from shared.contracts.strict_json import JsonValue, parse
from shared.errors import InvalidInput

SHORTEST = 3
"""Characters of a text that is replaced inside of others. A shorter one is replaced only at its path."""
PART = re.compile(
    r"\.\.(?P<any>[A-Za-z_$][\w$-]*)|\.(?P<name>\*|[A-Za-z_$][\w$-]*)|\[(?:(?P<index>\d{1,9}|\*)|'(?P<quoted>[^']*)')\]"
)

PAYLOADS = ("input", "messages", "request", "output", "error")
"""The members of tasks and steps in which values are replaced."""

Steps = list[tuple[str, str]]


def redact(case: dict[str, Any], paths: list[str]) -> dict[str, Any]:
    """Return a case without the values at some paths.

    Args:
        paths: such as `$.task.input.email`, `$..phone` or `$.task.steps[*].output.card`.

    Raises:
        InvalidInput: a path is not valid, or is that of nothing.
    """
    values: dict[str, None] = {}
    for path in paths:
        found = list(_at(case, _parse(path)))
        if not found:
            raise InvalidInput(f"The path {path!r} leads to nothing in this case. Nothing was written: check the path.")
        values.update(dict.fromkeys(leaf for value in found for leaf in _leaves(value, path)))
    return {**case, "task": _redact_task(case["task"], _Names(list(values)))}


def _redact_task(task: dict[str, Any], names: _Names) -> dict[str, Any]:
    steps = [_redact_step(step, names) for step in task.get("steps", [])]
    payloads = {name: names.replace(task[name]) for name in PAYLOADS if name in task}
    return {**task, **payloads, **({"steps": steps} if "steps" in task else {})}


def _redact_step(step: dict[str, Any], names: _Names) -> dict[str, Any]:
    payloads = {name: names.replace(step[name]) for name in PAYLOADS if name in step}
    return {**step, **payloads, **({"task": _redact_task(step["task"], names)} if "task" in step else {})}


class _Names:
    """The replacements of values."""

    def __init__(self, values: list[str]) -> None:
        self._whole = {value: f"[redacted {number}]" for number, value in enumerate(values, 1)}
        self._forms = {
            form: name for value, name in self._whole.items() if len(value) >= SHORTEST for form in _forms(value)
        }
        longest_first = sorted(self._forms, key=len, reverse=True)
        self._finder = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def replace(self, value: Any) -> Any:
        """Return a value without the redacted ones."""
        if isinstance(value, dict):
            return {self.replace(name): self.replace(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.replace(part) for part in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._whole.get(json.dumps(value), value)
        if not isinstance(value, str):
            return value
        if value in self._whole:
            return self._whole[value]
        if value[:1] in ("{", "["):
            return self._replace_in_json(value)
        return self._replace_in_text(value)

    def _replace_in_json(self, value: str) -> str:
        """Return a text that is JSON without the redacted values: it must stay JSON."""
        try:
            parsed = parse(value)
        except InvalidInput:
            return self._replace_in_text(value)
        replaced = self.replace(parsed)
        return value if replaced == parsed else json.dumps(replaced, ensure_ascii=False)

    def _replace_in_text(self, value: str) -> str:
        return self._finder.sub(lambda match: self._forms[match[0]], value) if self._finder else value


def _parse(path: str) -> Steps:
    if not path.startswith("$"):
        raise InvalidInput(f"Invalid JSON path {path!r}: it must begin with `$`, such as $.task.input.email.")
    steps: Steps = []
    at = 1
    while at < len(path):
        part = PART.match(path, at)
        if part is None:
            raise InvalidInput(
                f"Invalid JSON path {path!r} at character {at + 1}: its parts must be .name, ['name'], [0], [*], .* or "
                "..name."
            )
        kind = part.lastgroup or ""
        steps.append((kind, part[kind]))
        at = part.end()
    return steps


def _at(value: JsonValue, steps: Steps) -> Iterator[JsonValue]:
    if not steps:
        yield value
        return
    (kind, name), rest = steps[0], steps[1:]
    for part in _below(value, kind, name):
        yield from _at(part, rest)


def _below(value: JsonValue, kind: str, name: str) -> Iterator[JsonValue]:
    if kind == "any":
        if isinstance(value, dict) and name in value:
            yield value[name]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for part in parts:
            yield from _below(part, kind, name)
    elif isinstance(value, dict) and kind in ("name", "quoted"):
        yield from value.values() if (kind, name) == ("name", "*") else [value[name]] if name in value else []
    elif isinstance(value, list) and (kind == "index" or name == "*"):
        yield from value if name == "*" else value[int(name) : int(name) + 1]


def _leaves(value: JsonValue, path: str) -> Iterator[str]:
    """Yield the texts of a value, and its numbers as text."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part, path)
    elif isinstance(value, str) and value:
        yield value
    elif isinstance(value, int | float):
        written = json.dumps(value)
        if isinstance(value, bool) or len(written) < SHORTEST:
            raise InvalidInput(
                f"The value {written} at {path!r} cannot be redacted: equal values elsewhere, which mean something "
                "else, would be replaced too. Edit the case by hand."
            )
        yield written


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it is, and as it is written in a JSON text, and in one inside of another."""
    once = value
    for _ in range(3):
        yield once
        yield json.dumps(once)[1:-1]
        once = json.dumps(once, ensure_ascii=False)[1:-1]
