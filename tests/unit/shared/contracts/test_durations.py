"""Durations in definitions."""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.documents import FunctionDefinition, ToolDefinition, parse_definition
from shared.contracts.durations import seconds_of
from shared.errors import InvalidDefinition

ECHO = {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"}
OTHERS: list[Any] = [3600, 1.5, True, ["1h"], {"for": "1h"}, "", "1h\n", "\u0661h", "one hour", "9" * 1000 + "h"]
OTHERS += "1/h/1 h/ 1h/1.5h/1h30m/1H/1y/1w/PT1H/-1h/+1h".split("/")
DOUBLE = {"kind": "function", "name": "double", "code": "def double(x):\n    return 2 * x\n"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800), ("30d", 2_592_000)]
)
def test_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    tool = parse_definition({**ECHO, "cache": text})
    assert isinstance(tool, ToolDefinition)
    assert tool.cache == text
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "given",
    OTHERS,
    ids=repr,
)
@pytest.mark.parametrize("definition", [ECHO, DOUBLE], ids=["tool", "function"])
def test_other_values_are_refused(definition: dict[str, Any], given: Any) -> None:
    with pytest.raises(InvalidDefinition, match="cache: a duration must be a whole number with a unit"):
        parse_definition({**definition, "cache": given})


@pytest.mark.parametrize("given", ["0s", "0h", "00d", "31d", "365d", "999999999d"])
def test_duration_out_of_bounds_is_refused(given: str) -> None:
    with pytest.raises(InvalidDefinition, match=f"must be between 1s and 30d; {given} is not"):
        parse_definition({**ECHO, "cache": given})


@pytest.mark.parametrize("effect", ["idempotent", "unsafe", None])
def test_only_pure_tools_are_cached(effect: str | None) -> None:
    with pytest.raises(InvalidDefinition, match=f"must declare `effect: pure`, and this one is {effect or 'unsafe'}"):
        parse_definition({**ECHO, "effect": effect, "cache": "1h"})


def test_http_tool_is_cached_only_if_it_declares_itself_pure() -> None:
    get = {"kind": "tool", "name": "get", "type": "http", "http": {"url": "https://api.example.com"}, "cache": "1h"}
    with pytest.raises(InvalidDefinition, match="this one is idempotent"):
        parse_definition(get)
    parse_definition({**get, "effect": "pure"})


def test_sub_task_is_not_cached() -> None:
    with pytest.raises(InvalidDefinition, match="type agent must not have `cache`"):
        parse_definition(
            {"kind": "tool", "name": "ask", "type": "agent", "agent": "A", "effect": "pure", "cache": "1h"}
        )


def test_function_that_depends_on_its_task_is_not_cached() -> None:
    with pytest.raises(InvalidDefinition, match="requires_context must not be cached"):
        parse_definition({**DOUBLE, "cache": "1h", "config": {"requires_context": True}})


@pytest.mark.parametrize("definition", [ECHO, DOUBLE], ids=["tool", "function"])
def test_definition_without_cache_is_stored_as_before(definition: dict[str, Any]) -> None:
    parsed = parse_definition(definition)
    assert isinstance(parsed, ToolDefinition | FunctionDefinition)
    assert "cache" not in parsed.content()
    assert parse_definition({**definition, "cache": None}).checksum() == parsed.checksum()
    assert parse_definition({**definition, "cache": "1h"}).checksum() != parsed.checksum()
