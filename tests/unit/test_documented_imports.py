"""Documented imports keep working, wherever the code moves."""

from __future__ import annotations

import importlib

import pytest

DOCUMENTED = {
    "shared.registry": ["AgentRegistry"],
    "shared.models": ["Agent", "Function", "Tool"],
    "shared.schemas": ["AgentResponse", "AIMessage", "HumanMessage", "SystemMessage", "TaskRequest"],
    "shared.function_store": ["FunctionStore"],
    "shared.database": ["get_engine", "statement", "transaction"],
    "shared.errors": ["MinionError"],
    "shared.sandbox": ["Sandbox"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in DOCUMENTED.items() for name in names])
def test_documented_name_is_importable(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", ["shared.models", "shared.schemas", "shared.function_store", "shared.database"])
def test_module_for_users_exports_what_it_imports(module: str) -> None:
    there = importlib.import_module(module)
    assert all(hasattr(there, name) for name in there.__all__)
