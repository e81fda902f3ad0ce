"""An agent that runs one function, tool or chain takes what that takes, by the version that it pins."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.schedules.store import try_out
from shared.contracts.requests import TaskRequest
from shared.database.connections import transaction
from shared.errors import InvalidDefinition, InvalidInput
from shared.tasks.submission import submit_within
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks

CODE = "def shout(text):\n    return {'loud': text.upper()}\n"


def text_of(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"text": {"type": "string", **more}}, "required": ["text"]}


LOUD = {**text_of(), "properties": {"loud": {"type": "string"}}, "required": ["loud"], "additionalProperties": False}
SHOUT = {"kind": "function", "name": "shout", "code": CODE, "input_schema": text_of(), "output_schema": LOUD}
SHOUTER = {"kind": "tool", "name": "shouter", "type": "function", "function": "shout"}


def runs(name: str, **what: Any) -> dict[str, Any]:
    return {"kind": "agent", "name": name, "type": "function", "config": {"capabilities": ["work"]}, **what}


def accept(agent: str, value: Any = None, **fields: Any) -> None:
    with transaction() as connection:
        submit_within(connection, [TaskRequest(agent=agent, input=value, **fields)], submitted_by="test")


AGENTS = [
    runs("Function", function="shout"),
    runs("Tool", tool="shouter"),
    runs("Chain", relations=[{"agent": "Tool"}]),
    runs("Outer", relations=[{"agent": "Chain"}]),
]


@pytest.mark.parametrize("name", ["Function", "Tool", "Chain", "Outer"])
def test_input_is_refused_that_the_function_would_refuse(define: Define, name: str) -> None:
    define(SHOUT, SHOUTER, *AGENTS)
    with pytest.raises(InvalidInput, match=f"The input of {name!r} does not match its schema: .*'text' is a required"):
        accept(name, {"txt": "a"})
    accept(name, {"text": "a"})


def test_stricter_schema_of_the_tool_decides(define: Define) -> None:
    define(SHOUT, {**SHOUTER, "input_schema": text_of(maxLength=3)}, *AGENTS)
    with pytest.raises(InvalidInput, match="too long"):
        accept("Tool", {"text": "loud"})
    accept("Function", {"text": "loud"})


def test_own_schema_replaces_inherited_schema(define: Define) -> None:
    define(SHOUT, runs("Function", function="shout", input_schema={}))
    accept("Function", {"txt": "a"})


def test_the_pinned_version_decides(define: Define) -> None:
    define(SHOUT, runs("Pinned", function="shout@1"), runs("Follower", function="shout"))
    define({**SHOUT, "input_schema": text_of(maxLength=3)})
    accept("Pinned", {"text": "loud"})
    with pytest.raises(InvalidInput, match="too long"):
        accept("Follower", {"text": "loud"})


@pytest.mark.parametrize(
    ("strategy", "relation"), [("parallel", {"agent": "Tool"}), ("sequential", {"agent": "Tool", "for_each": "list"})]
)
def test_other_chains_take_anything(define: Define, strategy: str, relation: Any) -> None:
    config = {"capabilities": ["work"], "chain_strategy": strategy}
    define(SHOUT, SHOUTER, *AGENTS, runs("Other", relations=[relation], config=config))
    accept("Other", {"list": []})


@pytest.mark.parametrize("name", ["Function", "Tool", "Chain"])
def test_schedule_with_invalid_input_is_refused(database: Engine, define: Define, name: str) -> None:
    define(SHOUT, SHOUTER, *AGENTS)
    with pytest.raises(InvalidInput, match="'text' is a required"):
        try_out(database, "default", "daily", {"agent": name, "input": {}})
    try_out(database, "default", "daily", {"agent": name, "input": {"text": "a"}})


@pytest.mark.parametrize("name", ["Function", "Tool"])
def test_messages_become_the_function_input(
    define: Define, tasks: Tasks, inline_worker: InlineWorker, name: str
) -> None:
    define(SHOUT, SHOUTER, *AGENTS)
    task = tasks.submit(name, messages=[{"role": "user", "content": "hello"}])
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"loud": "HELLO"}


def test_chain_of_incompatible_functions_is_refused(define: Define) -> None:
    define(SHOUT, SHOUTER, *AGENTS)
    with pytest.raises(InvalidDefinition, match=r"'Twice', relations.1: the output of 'Tool' never fits 'Function'"):
        define(runs("Twice", relations=[{"agent": "Tool"}, {"agent": "Function"}]))
