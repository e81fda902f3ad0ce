"""Definitions and requests as typed values. tests/integration/definitions/ tests definitions in files."""

from __future__ import annotations

import math
import sys
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from shared.contracts.documents import AgentDefinition, FunctionDefinition, parse_definition, stored_definition
from shared.contracts.requests import AIMessage, HumanMessage, Message
from shared.database.tables import Agent
from shared.errors import InvalidDefinition
from shared.tasks.response import AgentResponse
from shared.tasks.states import State


def test_documented_agent_is_accepted() -> None:
    agent = Agent(
        name="SearchAgent",
        description="...",
        system_prompt="...",
        input_schema={"type": "object"},
        output_schema={"type": "object"},
        config_data={"capabilities": ["search", "filter"]},
        max_chain_depth=3,
    )
    config = agent.definition.config
    assert (agent.definition.type, agent.definition.model) == ("agent", "auto")
    assert (config.capabilities, config.max_chain_depth, config.max_attempts) == (["search", "filter"], 3, 3)


def test_settings_beside_config_take_precedence() -> None:
    definition = AgentDefinition.from_arguments(
        name="A", config_data={"max_tokens": 1, "model": "offline", "temperature": 0}, max_tokens=2, top_p=None
    )
    assert (definition.config.max_tokens, definition.model, definition.config.temperature) == (2, "offline", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"config_data": "x"}, "config_data must be a dictionary, not str"),
        ({"config_data": [1]}, "config_data must be a dictionary, not list"),
        ({"config_data": {1: 2}}, "config.1"),
        ({"config_data": {"colour": 1}}, "config.colour: Extra inputs"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"name": None}, "name: Field required"),
        ({"name": 5}, "name: Input should be a valid string"),
        ({"max_attempts": True}, "config.max_attempts: Input should be a valid integer"),
        ({"max_attempts": 3.0}, "config.max_attempts: Input should be a valid integer"),
        ({"temperature": math.nan}, "config.temperature: Input should be a finite number"),
        ({"max_chain_depth": 0}, "config.max_chain_depth"),
        ({"chain_strategy": "random"}, "config.chain_strategy"),
        ({"capabilities": "search"}, "config.capabilities: Input should be a valid list"),
        ({"capabilities": ["Search"]}, "config.capabilities.0"),
        ({"capabilities": ["a\n"]}, "config.capabilities.0"),
        ({"input_schema": True}, "input_schema: Input should be a valid dictionary"),
        ({"input_schema": {"default": math.inf}}, "inf is not a JSON number"),
        ({"input_schema": {"properties": {True: {}}}}, "a key that is not text"),
        ({"input_schema": {"default": "\0"}}, "U+0000"),
        ({"description": "\ud800"}, "description: "),
        ({"description": "x" * 10_001}, "description: String should have at most"),
        ({"tools": ["a@99999999999999999999"]}, "tools.0"),
        ({"relations": [{"agent": "B", "for_each": "a b"}]}, "relations.0.for_each"),
        ({"relations": [{"agent": "B", "colour": 1}]}, "relations.0.colour"),
    ],
)
def test_error_names_the_wrong_argument(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        Agent(**{"name": "A", **arguments})
    assert words in caught.value.message


def test_deeply_nested_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(InvalidDefinition, match="nesting deeper than 100 levels"):
        AgentDefinition.from_arguments(name="A", input_schema=schema)


def test_message_for_thousands_of_faults_is_short() -> None:
    with pytest.raises(InvalidDefinition, match="and 9980 more") as caught:
        parse_definition({"kind": "agent", "name": "A", **{f"{'x' * 1000}{n}": 1 for n in range(10_000)}})
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("data", [None, 5, "agent", [], [{"kind": "agent"}], {}, {"kind": None}, {"kind": {}}, {1: 2}])
def test_invalid_definition_is_refused(data: Any) -> None:
    with pytest.raises(InvalidDefinition):
        parse_definition(data, where="file.yaml")


@pytest.mark.parametrize(
    ("http", "words"),
    [
        ({"url": "https://api.example.com:x/s"}, "http.url: Invalid URL: Invalid port: 'x'"),
        ({"url": "https://api.example.com:70000/{a}"}, "http.url: Invalid URL: 70000 is not a port"),
        ({"url": "https://1.2.3.444/{a}"}, "http.url: Invalid URL: Invalid IPv4 address"),
        ({"url": "https://[::x]/"}, "http.url: Invalid URL: Invalid IPv6 address"),
        ({"url": "https://a..%/"}, "http.url: Invalid URL: its host is neither"),
        ({"url": "https://{host}/"}, "http.url: a URL must begin with"),
        ({"url": "https://me:secret@example.com/"}, "http.url: a URL must begin with"),
        ({"url": "https://example.com/", "headers": {"X": " around "}}, "http.headers.X: String should match"),
        ({"url": "https://example.com/", "headers": {"X": "a\nb"}}, "http.headers.X: String should match"),
    ],
)
def test_unsendable_http_request_is_refused(http: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_definition({"kind": "tool", "name": "fetch", "type": "http", "http": http})
    assert words in caught.value.message


def test_hard_limit_defaults_to_soft_limit_plus_margin() -> None:
    def limits(**config: int) -> tuple[int, int]:
        made = AgentDefinition.from_arguments(name="A", **config).config
        return made.soft_time_limit, made.time_limit

    assert limits() == (300, 330)
    assert limits(soft_time_limit=10) == (10, 15)
    assert limits(soft_time_limit=1000) == (1000, 1100)
    assert limits(soft_time_limit=10, time_limit=11) == (10, 11)
    assert limits(time_limit=301) == (300, 301)


def test_checksum_covers_content_not_spelling() -> None:
    one = FunctionDefinition(name="f", code="x", input_schema={"minimum": 1, "maximum": 2})
    same = FunctionDefinition(name="f", code="x", input_schema={"maximum": 2.0, "minimum": 1}, entrypoint="f")
    assert one.checksum() == same.checksum()
    assert one.checksum() != one.model_copy(update={"code": "y"}).checksum()
    assert one.checksum() != one.checksum(function="other")


def test_response_converts_to_history() -> None:
    response = AgentResponse(task_id=uuid4(), agent="A", state=State.SUCCEEDED, content="hello")
    assert response.messages == [AIMessage(content="hello")]
    assert HumanMessage(content="x").role == "user"
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "king", "content": "x"})


def test_reading_a_definition_does_not_copy_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """That writes to every module, which a child of the pool would no longer share with its parent."""

    class Modules(dict[str, Any]):
        def copy(self) -> dict[str, Any]:
            raise AssertionError("sys.modules is copied")

    content = {"type": "agent", "system_prompt": "Answer.", "config": {"capabilities": ["x"]}}
    monkeypatch.setattr(sys, "modules", Modules(sys.modules))
    assert stored_definition("agent", "reader", content, None).config.capabilities == ["x"]
