from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import demo
from shared.contracts.documents import FunctionDefinition, parse_definition

Function = Callable[..., dict[str, Any]]


def documents(folder: Path) -> list[dict[str, Any]]:
    """Return the definition documents below a folder, with the text of `code_file` in its place."""
    found = []
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if "code_file" in document:
                document["code"] = (file.parent / document.pop("code_file")).read_text(encoding="utf-8")
            found.append(document)
    return found


def stored_function(folder: Path, name: str) -> Function:
    """Return a function from the definitions in a folder, compiled here without the sandbox."""
    found = [document for document in documents(folder) if document["kind"] == "function" and document["name"] == name]
    definition = parse_definition(found[0])
    assert isinstance(definition, FunctionDefinition)
    names: dict[str, Any] = {}
    exec(compile(definition.code, name, "exec", dont_inherit=True), names)
    function: Function = names[str(definition.entrypoint)]
    return function


@pytest.fixture(scope="session")
def normalise_v1() -> Function:
    return stored_function(demo.AGENTS, "normalise_licence")


@pytest.fixture(scope="session")
def normalise_v2() -> Function:
    return stored_function(demo.UPGRADE, "normalise_licence")


@pytest.fixture(scope="session")
def classify() -> Function:
    return stored_function(demo.AGENTS, "classify_licence")


@pytest.fixture(scope="session")
def summarise() -> Function:
    return stored_function(demo.AGENTS, "summarise_audit")


@pytest.fixture(scope="session")
def definition_documents() -> Callable[[Path], list[dict[str, Any]]]:
    return documents


@pytest.fixture
def inspected() -> Callable[..., dict[str, Any]]:
    """Return a builder of what `inspect-distribution` returns, from its licence fields."""

    def build(
        expression: str = "", field: str = "", classifiers: tuple[str, ...] = (), texts: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        return {
            "name": "example",
            "version": "1.0",
            "licence_expression": expression,
            "licence_field": field,
            "licence_classifiers": [f"License :: OSI Approved :: {classifier}" for classifier in classifiers],
            "licence_texts": list(texts),
            "facts": {"bytes": 10, "requirements": ["a", "b"], "summary": "An example."},
        }

    return build
