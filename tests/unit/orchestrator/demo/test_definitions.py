from __future__ import annotations

import tomllib

from orchestrator import demo
from orchestrator.demo import tools
from shared.contracts.documents import AgentDefinition, FunctionDefinition, ToolDefinition, parse_definition
from shared.definitions.files import load
from tests.support.processes import ROOT


def test_every_document_is_a_valid_definition(definition_documents):
    documents = definition_documents(demo.AGENTS) + definition_documents(demo.UPGRADE)

    for document in documents:
        assert parse_definition(document).name == document["name"]


def test_files_load_unchanged():
    assert {definition.kind for definition in load(demo.AGENTS)} == {"agent", "tool", "function"}


def test_every_reference_is_defined():
    definitions = load(demo.AGENTS)
    names = {kind: {d.name for d in definitions if isinstance(d, kind)} for kind in (ToolDefinition, AgentDefinition)}
    functions = {d.name for d in definitions if isinstance(d, FunctionDefinition)}

    for agent in (d for d in definitions if isinstance(d, AgentDefinition)):
        assert {relation.agent for relation in agent.relations} <= names[AgentDefinition]
        assert {*agent.tools, *([agent.tool] if agent.tool else [])} <= names[ToolDefinition]
        assert agent.function is None or agent.function in functions


def test_every_builtin_has_its_function():
    for definition in load(demo.AGENTS):
        if isinstance(definition, ToolDefinition):
            assert callable(getattr(tools, str(definition.builtin).replace("-", "_")))


def test_every_builtin_is_registered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    registered = project["entry-points"]["minions.tools"]
    for definition in load(demo.AGENTS):
        if isinstance(definition, ToolDefinition):
            name = str(definition.builtin)
            assert registered[name] == f"orchestrator.demo.tools:{name.replace('-', '_')}"


def test_upgrade_replaces_one_function_under_the_same_contract():
    (upgrade,) = load(demo.UPGRADE)
    (first,) = [d for d in load(demo.AGENTS) if d.name == upgrade.name]
    assert isinstance(upgrade, FunctionDefinition)
    assert isinstance(first, FunctionDefinition)

    assert upgrade.input_schema == first.input_schema
    assert upgrade.code != first.code


def test_work_is_spread_over_several_capabilities():
    agents = [d for d in load(demo.AGENTS) if isinstance(d, AgentDefinition)]

    assert {name for agent in agents for name in agent.config.capabilities} == {"inspect", "classify", "report"}
