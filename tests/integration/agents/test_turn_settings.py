"""What the author of an agent sets for its turns, as it reaches the Messages API; and what is refused before that."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from structlog.testing import capture_logs

from minions import testing
from minions.testing import MessagesApi, error, tool_use
from shared.errors import InvalidDefinition
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent
from tests.integration.conftest import ACT, InlineWorker, Tasks
from workers.llm import structured

ANSWER = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}
WORK = {"capabilities": ["work"]}
SENT = {
    "type": "object",
    "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture
def ask(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task of `Agent` with a script of replies; returns it with the requests."""

    def run(*script: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        messages_api.requests.clear()
        messages_api.script = [*script]
        task = tasks.submit("Agent", "Hello", **fields)
        inline_worker.run_all()
        return tasks.get(task), messages_api.requests

    return run


def test_settings_reach_the_model(ask: Any, define_agent: DefineAgent, messages_api: MessagesApi) -> None:
    define_agent(
        {
            "stop_sequences": ["END", "\n\nUser:"],
            "service_tier": "standard_only",
            "user_id": "tenant",
            "betas": ["context-1m-2025-08-07", "other-2026-01-01"],
            "top_k": 40,
            "budget": {"tokens": 100_000},
        },
        model="claude-opus-4-5",
    )
    task, [request] = ask(testing.text("Hi.", "stop_sequence", stop_sequence="END"), key="tenant-7")
    assert task["output"] == {"content": "Hi."}, task["error"]
    assert request["stop_sequences"] == ["END", "\n\nUser:"]
    assert request["service_tier"] == "standard_only"
    assert request["metadata"] == {"user_id": "tenant-7"}
    assert request["top_k"] == 40
    assert messages_api.headers[-1]["anthropic-beta"] == "context-1m-2025-08-07,other-2026-01-01"
    # Counting takes fewer arguments.
    assert messages_api.counted[-1].keys() <= {"model", "messages", "system", "tools", "tool_choice", "thinking"}


def test_hash_of_a_tenant_reaches_the_model(ask: Any, define_agent: DefineAgent) -> None:
    define_agent({"user_id": "tenant_hash"})
    _, [request] = ask(testing.text("Hi."), key="tenant-7")
    assert request["metadata"] == {"user_id": hashlib.sha256(b"default\0tenant-7").hexdigest()}
    _, [request] = ask(testing.text("Hi."))
    assert "metadata" not in request


@pytest.mark.parametrize(
    ("choice", "first", "later"),
    [
        ({"type": "any"}, {"type": "any"}, None),
        ({"type": "tool", "name": "echo"}, {"type": "tool", "name": "echo"}, None),
        (
            {"type": "auto", "parallel": False},
            {"type": "auto", "disable_parallel_tool_use": True},
            {"type": "auto", "disable_parallel_tool_use": True},
        ),
        ({"type": "auto", "turns": "first"}, {"type": "auto"}, None),
        ({"type": "none"}, {"type": "none"}, {"type": "none"}),
    ],
)
def test_tool_choice_is_for_the_first_turn_or_all(
    ask: Any, define_agent: DefineAgent, choice: Any, first: Any, later: Any
) -> None:
    define_agent({"tool_choice": choice})
    task, requests = ask(tool_use(("echo", {})), testing.text("Hi."))
    assert task["state"] == "succeeded", task["error"]
    assert [request.get("tool_choice") for request in requests] == [first, later]


def test_answer_is_constrained_to_the_output_schema(ask: Any, define_agent: DefineAgent) -> None:
    define_agent({"effort": "low"}, output_schema=ANSWER)
    task, [request] = ask(testing.text('{"n": 3}'))
    assert task["output"] == {"n": 3}
    assert request["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": SENT}}
    # Bounds are not among what the API enforces.
    task, requests = ask(testing.text('{"n": 0}'), testing.text('{"n": 1}'))
    assert (task["output"], len(requests)) == ({"n": 1}, 2)


@pytest.mark.parametrize(
    ("model", "schema"),
    [
        ("gateway-model", ANSWER),
        ("claude-sonnet-5-5", {"type": "object", "additionalProperties": {"type": "integer"}}),
        ("claude-sonnet-5-5", {}),
    ],
)
def test_answer_is_asked_for_where_it_cannot_be_constrained(
    ask: Any, define_agent: DefineAgent, model: str, schema: dict[str, Any]
) -> None:
    define_agent(model=model, output_schema=schema)
    task, [request] = ask(testing.text('{"n": 3}'))
    assert task["output"] == {"n": 3}
    assert "output_config" not in request
    assert "matches this JSON Schema" in request["system"][0]["text"]


def test_schema_that_the_api_refuses_is_sent_once(
    ask: Any, define_agent: DefineAgent, monkeypatch: pytest.MonkeyPatch, tasks: Tasks
) -> None:
    monkeypatch.setattr(structured, "_refused", type(structured._refused)())
    define_agent(output_schema=ANSWER)
    refusal = error(400, "invalid_request_error", "output_config.format.schema: The compiled grammar is too large.")
    with capture_logs() as logs:
        task, requests = ask(refusal, testing.text('{"n": 3}'))
    assert task["output"] == {"n": 3}
    assert ["output_config" in request for request in requests] == [True, False]
    assert "answer_not_constrained" in [entry["event"] for entry in logs]
    assert [execution["outcome"] for execution in tasks.executions(task["id"])] == ["succeeded"]
    _, [request] = ask(testing.text('{"n": 3}'))
    assert "output_config" not in request


def test_other_refusals_of_the_api_fail_the_task(ask: Any, define_agent: DefineAgent) -> None:
    define_agent(output_schema=ANSWER)
    task, requests = ask(error(400, "invalid_request_error", "max_tokens: too large"))
    assert (task["state"], len(requests)) == ("failed", 1)


def test_strict_tool_reaches_the_model(ask: Any, define: Define) -> None:
    define(
        {**ACT, "strict": True, "approval": True, "input_schema": ANSWER},
        {"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "tools": ["act"], "config": WORK},
    )
    _, [request] = ask(testing.text("Hi."))
    [tool] = request["tools"]
    assert (tool["strict"], tool["input_schema"]) == (True, SENT)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"config": {"tool_choice": {"type": "tool", "name": "nothing"}}}, "not one of the agent's tools"),
        ({"config": {"tool_choice": {"type": "tool"}}}, "must have `name`"),
        ({"config": {"tool_choice": {"type": "any", "turns": "all"}}}, "must be for the first turn"),
        ({"config": {"tool_choice": {"type": "any"}, "thinking": "adaptive"}}, "must not be forced"),
        ({"config": {"tool_choice": {"type": "any"}}, "tools": []}, "must come with `tools`"),
        ({"config": {"stop_sequences": [" "]}}, "stop_sequences"),
        ({"config": {"betas": ["a b"]}}, "betas"),
        ({"config": {"betas": ["a\r\nx-key: 1"]}}, "betas"),
        ({"config": {"top_k": 5}}, "cannot honour top_k=5. Leave it out."),
        ({"config": {"top_k": 5, "thinking": 2000}, "model": "claude-opus-4-5"}, "must not have temperature"),
        ({"config": {"user_id": "tenant"}, "model": "offline", "tools": []}, "'offline' cannot honour user_id"),
        ({"tools": ["strict"], "model": "claude-3-5-haiku-latest"}, "is not known to support that"),
        ({"tools": ["open"]}, "cannot be constrained to its input schema"),
        ({"tools": ["without"]}, "it has no input schema"),
    ],
)
def test_setting_that_cannot_be_honoured_is_refused(define: Define, fields: dict[str, Any], why: str) -> None:
    strict = {**ACT, "strict": True}
    define(
        {**ACT},
        {**strict, "name": "strict", "input_schema": ANSWER},
        {**strict, "name": "open", "input_schema": {"type": "object", "additionalProperties": {"type": "string"}}},
        {**strict, "name": "without"},
    )
    given = {"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "tools": ["act"], **fields}
    with pytest.raises(InvalidDefinition, match=why.replace("`", ".")):
        define(given)


@pytest.mark.parametrize("setting", [{"stop_sequences": ["x"]}, {"betas": ["a"]}, {"tool_choice": {"type": "auto"}}])
def test_agent_without_a_model_honours_no_setting(define: Define, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidDefinition, match="no model that could honour"):
        define(ACT, {"kind": "agent", "name": "A", "type": "function", "tool": "act", "config": setting})
