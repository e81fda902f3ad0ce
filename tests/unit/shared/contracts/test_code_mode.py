"""The field `code_mode` of agents."""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.documents import AgentDefinition, parse_definition
from shared.errors import InvalidDefinition


def agent(code_mode: Any = True, config: Any = None, **fields: Any) -> Any:
    given = {"kind": "agent", "name": "A", "model": "claude-sonnet-5-5", "tools": ["echo"], **fields}
    return parse_definition({**given, "config": {"code_mode": code_mode, **(config or {})}})


def test_true_has_the_default_limits() -> None:
    settings = agent().config.code_mode
    assert (settings.max_calls, settings.timeout, settings.memory_limit) == (100, 10.0, 128)
    assert agent({}).config.code_mode == settings


def test_stored_agent_is_read_back() -> None:
    stored = agent({"max_calls": 5}).content()
    assert stored["config"]["code_mode"]["max_calls"] == 5
    assert AgentDefinition.model_validate({"name": "A", **stored}).content() == stored


def test_without_code_mode_nothing_is_stored() -> None:
    assert "code_mode" not in agent(False).content()["config"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"code_mode": "yes"}, "config.code_mode"),
        ({"code_mode": {"max_calls": 0}}, "config.code_mode.max_calls"),
        ({"code_mode": {"timeout": float("inf")}}, "config.code_mode.timeout"),
        ({"code_mode": {"calls": 1}}, "config.code_mode.calls"),
        ({"tools": []}, "code_mode must come with `tools`"),
        ({"config": {"tool_search": {}}}, "code_mode must not come with tool_search"),
        ({"tools": ["run_program"]}, "the tool 'run_program' has the name of the one that code_mode offers"),
        ({"tools": ["send-mail", "send_mail"]}, "'send-mail' and 'send_mail' would be one function"),
        ({"model": "offline"}, "the model 'offline' cannot honour code_mode"),
        ({"config": {"tool_choice": {"type": "tool", "name": "echo"}}}, "tool_choice names 'echo'"),
        ({"type": "function", "model": None, "tools": [], "tool": "echo"}, "type: function has no model"),
    ],
)
def test_bad_definition_is_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidDefinition) as refused:
        agent(**fields)
    assert fault in refused.value.message


def test_program_can_be_forced_in_the_first_turn() -> None:
    assert agent(config={"tool_choice": {"type": "tool", "name": "run_program"}}).config.tool_choice.forces
