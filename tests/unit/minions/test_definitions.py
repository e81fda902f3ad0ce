"""Agents, tools and functions in Python: their documents, and calls of builtin tools."""

from __future__ import annotations

import asyncio
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import minions
from minions.definitions import documents_of
from minions.errors import InvalidDefinition, NotConfigured
from minions.results import snooze
from orchestrator.python_definitions import load, offered_tools

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "python_agents"


class Order(BaseModel):
    amount: int


@minions.tool(effect="pure", approval=True, builtin="shop-ship")
def ship(order: Order, at: datetime | None = None, *, context: Any) -> Order:
    """Ship an order."""
    return Order(amount=order.amount + context)


@minions.tool
async def later(seconds: float) -> dict[str, Any]:
    """Wait."""
    return snooze(seconds)


@minions.function(name="double-it", cache="1h")
async def double(n: int, context: Any = None) -> int:
    return n * 2


def test_tool_runs_with_typed_arguments_and_returns_json():
    assert ship.run({"order": {"amount": 2.0}, "at": "2026-11-30T08:00:00Z"}, 5) == {"amount": 7}
    assert ship(Order(amount=1), datetime.now(UTC), context=1).amount == 2
    assert asyncio.run(later.run({"seconds": 60}, None)) == snooze(60)


def test_tool_with_a_given_schema_receives_what_the_caller_sent():
    @minions.tool(input_schema={"type": "object"}, output_schema={})
    def plain(**arguments):
        return arguments

    assert plain.run({"order": {"amount": "x"}}, None) == {"order": {"amount": "x"}}
    assert (plain.document()["input_schema"], plain.document()["output_schema"]) == ({"type": "object"}, {})


def test_settings_become_fields_of_the_document():
    assert {name: value for name, value in ship.document().items() if "schema" not in name} == {
        "kind": "tool",
        "name": "ship",
        "description": "Ship an order.",
        "type": "builtin",
        "builtin": "shop-ship",
        "effect": "pure",
        "approval": True,
    }
    document = double.document()
    assert (document["name"], document["entrypoint"], document["cache"]) == ("double-it", "double", "1h")
    assert document["config"] == {"requires_context": True}
    assert [*document["input_schema"]["properties"]] == ["n"]


def test_agent_brings_what_it_refers_to_once():
    first = minions.Agent("first", tools=[ship, double, "stored"])
    second = minions.Agent("second", tools=[double, first])
    found = [(each["kind"], each["name"]) for each in documents_of([second, first])]
    assert sorted(found) == [
        ("agent", "first"),
        ("agent", "second"),
        ("function", "double-it"),
        *(("tool", name) for name in ("double-it", "first", "ship")),
    ]
    own = minions.Tool("double-it", type="function", function=double, cache="1h")
    with pytest.raises(InvalidDefinition, match="two different definitions of tool 'double-it'"):
        documents_of([first, own])


def test_decorators_work_without_pydantic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)

    @minions.function
    def half(n: int) -> int:
        return n // 2

    assert half(4) == 2
    with pytest.raises(NotConfigured, match=r"function 'half': .*minions-client\[pydantic\]"):
        half.document()
    given = minions.function(input_schema={"type": "object"}, output_schema={})(half.function)
    assert given.document()["input_schema"] == {"type": "object"}


def test_example_is_valid_and_offers_its_tool():
    definitions = load(str(EXAMPLE / "returns.py"))
    assert [each.name for each in definitions] == ["return_window", "print_label", "return_window", "returns-desk"]
    about = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    assert offered_tools(str(EXAMPLE / "returns.py")) == about["project"]["entry-points"]["minions.tools"]
