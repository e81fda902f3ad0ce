"""What the author of an agent sets for its turns, as it reaches the Messages API; and what is refused before that."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from structlog.testing import capture_logs

from minions import testing
from minions.results import sleep
from minions.testing import MessagesApi, compaction, error, tool_use
from shared.errors import InvalidDefinition
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import ACT, InlineWorker, Tasks
from workers.llm import diagnostics, structured

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


# ----------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("model", "beta", "dollars"),
    [("claude-opus-5-5", None, 0.000320), ("claude-opus-5", "fast-mode-2026-02-01", 0.000400)],
)
def test_speed_reaches_the_model_and_has_its_price(
    ask: Any, define_agent: DefineAgent, messages_api: MessagesApi, tasks: Tasks, model: str, beta: str, dollars: float
) -> None:
    define_agent({"speed": "fast", "budget": {"dollars": 10}}, model=model, tools=[])
    usage = {"input_tokens": 10, "output_tokens": 6, "speed": "fast"}
    task, [request] = ask(testing.text("Hi.", usage=usage))
    assert request["speed"] == "fast"
    assert messages_api.headers[-1].get("anthropic-beta") == beta
    [step] = tasks.steps(task["id"])
    assert step["usage"]["speed"] == "fast"
    assert step["cost_microdollars"] == round(dollars * 1e6)


def test_fallback_model_without_speed_is_asked_at_the_standard_one(ask: Any, define_agent: DefineAgent) -> None:
    define_agent({"speed": "fast", "fallback_models": ["claude-sonnet-5-5"]}, model="claude-opus-5-5")
    task, requests = ask(testing.refusal(), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert [request.get("speed") for request in requests] == ["fast", None]


# ------------------------------------------------------------------------------------------------ context management

EDITS = {
    "edits": [
        {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 2}},
        {
            "type": "clear_tool_uses_20250919",
            "trigger": {"type": "input_tokens", "value": 30_000},
            "keep": {"type": "tool_uses", "value": 3},
            "clear_at_least": {"type": "input_tokens", "value": 5000},
            "exclude_tools": ["echo"],
            "clear_tool_inputs": True,
        },
        {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 60_000}, "instructions": "Be brief."},
    ]
}
COMPACT = {"context_management": {"edits": [{"type": "compact_20260112"}]}}
CALL = {"type": "tool_use", "id": "toolu_9", "name": "echo", "input": {"a": 1}}


def test_edits_of_the_context_reach_the_model(
    ask: Any, define_agent: DefineAgent, messages_api: MessagesApi, tasks: Tasks
) -> None:
    define_agent({"context_management": EDITS}, model="claude-opus-5-5")
    applied = [{"type": "clear_tool_uses_20250919", "cleared_input_tokens": 40_000, "cleared_tool_uses": 7}]
    task, [request] = ask(testing.text("Hi.", context_management={"applied_edits": applied}))
    assert task["output"] == {"content": "Hi."}
    assert request["context_management"] == EDITS
    assert messages_api.headers[-1]["anthropic-beta"] == "compact-2026-01-12,context-management-2025-06-27"
    assert tasks.steps(task["id"])[0]["output"]["edits"] == applied


def test_conversation_goes_on_from_the_compaction(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent(COMPACT, model="claude-opus-5-5")
    used = {"input_tokens": 10, "output_tokens": 5}
    usage = {**used, "iterations": [{"type": "compaction", **used}, {"type": "message", **used}]}
    task, requests = ask(
        tool_use(("echo", {"a": 0})),
        compaction("So far: hello.", CALL, stop_reason="tool_use", usage=usage),
        testing.text("Hi."),
    )
    assert task["output"] == {"content": "Hi."}, task["error"]
    assert [message["role"] for message in requests[1]["messages"]] == ["user", "assistant", "user"]
    summary = {"type": "compaction", "content": "So far: hello.", "encrypted_content": None}
    said, results = plain(requests[2])
    assert said == {"role": "assistant", "content": [summary, CALL]}
    assert [block["tool_use_id"] for block in results["content"]] == ["toolu_9"]
    step = tasks.steps(task["id"])[2]
    assert step["output"]["content"] == [summary, CALL]
    # The compaction is charged beside the answer: $4 and $20 for a million tokens.
    assert step["cost_microdollars"] == 2 * (10 * 4 + 5 * 20)


def test_model_continues_after_a_pause_for_compaction(ask: Any, define_agent: DefineAgent) -> None:
    pausing = {"edits": [{"type": "compact_20260112", "pause_after_compaction": True}]}
    define_agent({"context_management": pausing}, model="claude-opus-5-5")
    task, requests = ask(compaction("So far: hello.", stop_reason="compaction"), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    [said] = plain(requests[1])
    assert said["content"][0]["content"] == "So far: hello."


def test_failed_compaction_replaces_nothing(ask: Any, define_agent: DefineAgent) -> None:
    define_agent(COMPACT, model="claude-opus-5-5")
    task, requests = ask(compaction(None, CALL, stop_reason="tool_use"), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert [message["role"] for message in requests[1]["messages"]] == ["user", "assistant", "user"]


# ------------------------------------------------------------------------------------------------------- task budget


def test_model_learns_the_remaining_budget_once(
    ask: Any, define_agent: DefineAgent, messages_api: MessagesApi, tasks: Tasks
) -> None:
    define_agent({"task_budget": True, "budget": {"tokens": 100_000}}, model="claude-opus-5-5")
    task, requests = ask(tool_use(("echo", {"a": 1})), testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}, task["error"]
    budget = {"type": "tokens", "total": 100_000}
    assert [request["output_config"]["task_budget"] for request in requests] == [budget, budget]
    assert messages_api.headers[-1]["anthropic-beta"] == "task-budgets-2026-03-13"
    assert tasks.steps(task["id"])[0]["output"]["task_budget"] == 100_000


@pytest.mark.parametrize("budget", [{"tokens": 19_999}, {"dollars": 5}, None])
def test_model_learns_no_budget_that_the_api_refuses(ask: Any, define_agent: DefineAgent, budget: Any) -> None:
    define_agent({"task_budget": True, "budget": budget, "max_tokens": 100}, model="claude-opus-5-5")
    task, [request] = ask(testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}, task["error"]
    assert "output_config" not in request


# ------------------------------------------------------------------------------------------------------- prompt cache


@pytest.mark.parametrize(
    ("tools", "choice", "ttl"),
    [
        (["careful"], None, "1h"),
        (["help"], None, "1h"),
        (["echo"], None, None),
        (["echo", "careful"], {"type": "tool", "name": "careful"}, "1h"),
        (["echo", "careful"], {"type": "tool", "name": "echo"}, None),
    ],
)
def test_prompt_lives_for_an_hour_if_the_next_turn_waits(
    ask: Any, define_agent: DefineAgent, tools: list[str], choice: Any, ttl: str | None
) -> None:
    define_agent({"tool_choice": choice} if choice else {}, tools=tools, system_prompt="Be brief.")
    _, [request] = ask(testing.text("Hi."))
    marks = [block["cache_control"].get("ttl") for _, block in testing._blocks(request) if "cache_control" in block]
    assert marks == [ttl] * 3


def test_task_that_has_waited_expects_to_wait_again(
    define_agent: DefineAgent, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    """Its tool asks for a wait only when it is called."""
    define_agent({}, tools=["act"], system_prompt="Be brief.")
    call = tool_use(("act", {"do": "answer", "answer": sleep(0.01)}))
    messages_api.script = [call, call, testing.text("Hi.")]
    task = tasks.submit("Agent", "Hello")
    inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Hi."}, tasks.get(task)["error"]
    ttls = [request["messages"][-1]["content"][-1]["cache_control"].get("ttl") for request in messages_api.requests]
    assert (ttls[0], ttls[-1]) == (None, "1h")


# -------------------------------------------------------------------------------------------------------- cache misses


def test_each_turn_names_the_reply_before_it(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent()
    task, requests = ask(tool_use(("echo", {"a": 1})), testing.text("Hi."))
    steps = [step for step in tasks.steps(task["id"]) if step["kind"] == "model_call"]
    assert [step["output"]["id"] for step in steps] == ["msg_1", "msg_2"]
    asked = [request["diagnostics"] for request in requests]
    assert asked == [{"previous_message_id": None}, {"previous_message_id": "msg_1"}]
    assert not any("cache_miss" in step["usage"] for step in steps)


def test_cache_miss_is_recorded(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent()
    miss = {"type": "tools_changed", "cache_missed_input_tokens": 41_000}
    task, _ = ask(testing.text("Hi.", diagnostics={"cache_miss_reason": miss}))
    assert tasks.steps(task["id"])[0]["usage"]["cache_miss"] == miss


def test_replaced_model_is_the_reason_of_a_cache_miss(ask: Any, define_agent: DefineAgent, tasks: Tasks) -> None:
    define_agent({"fallback_models": ["claude-opus-5"]}, model="claude-opus-5-5")
    task, _ = ask(tool_use(("echo", {"a": 1})), testing.refusal(), testing.text("Hi."))
    assert tasks.steps(task["id"])[-1]["usage"]["cache_miss"]["type"] == "model_changed"


def test_gateway_that_refuses_diagnostics_is_sent_none(
    ask: Any, define_agent: DefineAgent, monkeypatch: pytest.MonkeyPatch, tasks: Tasks
) -> None:
    monkeypatch.setattr(diagnostics, "_refused", set())
    define_agent()
    with capture_logs() as logs:
        unknown = error(400, "invalid_request_error", "diagnostics: Extra inputs are not permitted")
        task, requests = ask(unknown, testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}
    assert ["diagnostics" in request for request in requests] == [True, False]
    assert "cache_not_diagnosed" in [entry["event"] for entry in logs]
    assert [execution["outcome"] for execution in tasks.executions(task["id"])] == ["succeeded"]
    _, [request] = ask(testing.text("Hi."))
    assert "diagnostics" not in request


def test_other_unknown_field_is_no_reason_to_send_no_diagnostics(
    ask: Any, define_agent: DefineAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "_refused", set())
    define_agent()
    task, requests = ask(error(400, "invalid_request_error", "thinking: not supported by this model"))
    assert (task["state"], len(requests)) == ("failed", 2)
    assert diagnostics._refused == set()


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"config": {"speed": "fast"}}, "'claude-sonnet-5-5' is not known to support speed"),
        ({"config": {"speed": "fast"}, "model": "claude-opus-4-8"}, "is not known to support speed"),
        ({"config": {"speed": "fast"}, "model": "auto"}, "speed must come with a named model"),
        ({"config": {"speed": "fast", "lane": "batch"}, "model": "claude-opus-5-5"}, "not possible in batches"),
        ({"config": {"task_budget": True}, "model": "claude-sonnet-4-6"}, "support task_budget"),
        ({"config": {"betas": ["a-beta"], "lane": "auto"}}, "which all calls of a batch would have"),
        ({"config": COMPACT, "model": "claude-haiku-4-5"}, "support context_management with compact_20260112"),
        ({"config": {**COMPACT, "fallback_models": ["claude-haiku-4-5"]}}, "'claude-haiku-4-5' is not known"),
        ({"config": {"context_management": {"edits": []}}}, "edits"),
        ({"config": {"context_management": EDITS}}, "names 'echo', which is not one of the agent's tools"),
        (
            {"config": {"context_management": {"edits": EDITS["edits"][:1]}, "thinking": "disabled"}},
            "must not come with .thinking: disabled.",
        ),
        ({"config": {"context_management": {"edits": EDITS["edits"][::-1]}}}, "as its first edit"),
        ({"config": {"context_management": {"edits": EDITS["edits"][:1] * 2}}}, "each type of edit once"),
        (
            {
                "config": {
                    "context_management": {
                        "edits": [{"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 49_999}}]
                    }
                }
            },
            "greater than or equal to 50000",
        ),
        ({"config": {"context_management": {"edits": [{"type": "forget"}]}}}, "edits"),
        ({"tools": ["strict"], "config": {"fallback_models": ["claude-3-5-haiku-latest"]}}, "not known to support"),
        ({"config": {"tool_choice": {"type": "tool", "name": "nothing"}}}, "not one of the agent's tools"),
        ({"config": {"tool_choice": {"type": "tool"}}}, "must have `name`"),
        ({"config": {"tool_choice": {"type": "any", "turns": "all"}}}, "must be for the first turn"),
        ({"config": {"tool_choice": {"type": "any"}, "thinking": "adaptive"}}, "must not be forced"),
        ({"config": {"tool_choice": {"type": "any"}}, "tools": []}, "must come with `tools`"),
        ({"config": {"thinking": 2048}}, "'claude-sonnet-5-5' refuses .thinking: 2048."),
        ({"config": {"thinking": "disabled"}, "model": "claude-fable-5-2"}, "refuses .thinking: disabled."),
        ({"config": {"thinking": "adaptive", "fallback_models": ["claude-haiku-4-5"]}}, "fallback_models: the model"),
        ({"config": {"effort": "low"}, "model": "claude-haiku-4-5"}, "refuses .effort: low."),
        ({"config": {"effort": "xhigh", "fallback_models": ["claude-sonnet-4-6"]}}, "refuses .effort: xhigh."),
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


@pytest.mark.parametrize(
    "setting",
    [
        {"stop_sequences": ["x"]},
        {"betas": ["a"]},
        {"tool_choice": {"type": "auto"}},
        {"fallback_models": ["claude-opus-5"]},
        {"speed": "fast"},
        {"task_budget": True},
        COMPACT,
    ],
)
def test_agent_without_a_model_honours_no_setting(define: Define, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidDefinition, match="no model that could honour"):
        define(ACT, {"kind": "agent", "name": "A", "type": "function", "tool": "act", "config": setting})
