"""Tools that the Messages API runs: what reaches it, what the journal keeps, limits over a task, and containers."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import ToolUnionParam
from pydantic import TypeAdapter

from minions import testing
from minions.testing import MessagesApi, code_execution, error, said, tool_search, tool_use, web_fetch, web_search
from shared.database.connections import transaction
from shared.errors import InvalidDefinition
from shared.settings import get_settings
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.agents.conftest import DefineAgent, plain
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.processes import wait_until

SDK_TOOL: TypeAdapter[Any] = TypeAdapter(ToolUnionParam)
NEWS = ("Boats sink", "https://news.example/boats")
CONTAINER = {"id": "container_1", "expires_at": "2026-11-01T12:05:00Z"}


def tool(kind: str, name: str | None = None, **settings: Any) -> dict[str, Any]:
    return {"kind": "tool", "name": name or kind.replace("_", "-"), "type": kind, kind: settings}


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


@pytest.fixture
def agent_with(define: Define, define_agent: DefineAgent) -> Any:
    """Defines `Agent` with these tools."""

    def make(*tools: dict[str, Any], config: dict[str, Any] | None = None, **fields: Any) -> None:
        define(*tools)
        define_agent(config, tools=[each["name"] for each in tools] + fields.pop("others", []), **fields)

    return make


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ("claude-sonnet-5-5", tool("web_search"), {"type": "web_search_20260318", "max_uses": 5}),
        ("claude-haiku-4-5", tool("web_search"), {"type": "web_search_20250305", "max_uses": 5}),
        (
            "claude-opus-4-8",
            tool(
                "web_search",
                max_uses=2,
                allowed_domains=["example.com", "docs.example.org/blog"],
                user_location={"city": "Bonn", "country": "DE", "timezone": "Europe/Berlin"},
                dynamic_filtering=False,
            ),
            {
                "type": "web_search_20260318",
                "max_uses": 2,
                "allowed_domains": ["example.com", "docs.example.org/blog"],
                "allowed_callers": ["direct"],
                "user_location": {
                    "type": "approximate",
                    "city": "Bonn",
                    "country": "DE",
                    "timezone": "Europe/Berlin",
                },
            },
        ),
        (
            "claude-fable-5",
            tool("web_search", blocked_domains=["example.com"], response_inclusion="excluded"),
            {
                "type": "web_search_20260318",
                "max_uses": 5,
                "blocked_domains": ["example.com"],
                "response_inclusion": "excluded",
            },
        ),
        (
            "claude-haiku-4-5",
            tool("web_fetch", citations=True, max_content_tokens=9000),
            {
                "type": "web_fetch_20250910",
                "max_uses": 5,
                "citations": {"enabled": True},
                "max_content_tokens": 9000,
            },
        ),
        (
            "claude-sonnet-5-5",
            tool(
                "web_fetch",
                use_cache=False,
                url_sources={"user_input": "none", "server_tool_results": {"only": ["web_fetch"]}},
            ),
            {
                "type": "web_fetch_20260318",
                "max_uses": 5,
                "max_content_tokens": 25_000,
                "use_cache": False,
                "url_sources": {
                    "user_input": {"type": "none"},
                    "server_tool_results": {
                        "type": "only",
                        "tools": [{"type": "tool_reference", "name": "web_fetch"}],
                    },
                },
            },
        ),
        ("claude-haiku-4-5", tool("code_execution"), {"type": "code_execution_20260521"}),
        ("claude-opus-4-1", tool("code_execution"), {"type": "code_execution_20250825"}),
        ("claude-sonnet-5-5", tool("memory", per="agent"), {"type": "memory_20250818"}),
    ],
)
def test_tool_reaches_the_model_as_it_is_set(
    ask: Any, agent_with: Any, model: str, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    agent_with(given, model=model)
    task, [request] = ask(testing.text("Hi."))
    assert task["state"] == "succeeded", task["error"]
    [offered] = request["tools"]
    assert offered.pop("cache_control") == {"type": "ephemeral"}
    assert offered == {"name": given["type"], **sent}
    SDK_TOOL.validate_python(request["tools"][0])
    assert "container" not in request


@pytest.mark.parametrize(
    ("given", "fields", "fault"),
    [
        (tool("web_search"), {"model": "claude-3-5-haiku-latest"}, "is not known to take it"),
        (tool("web_search"), {"model": "gateway-model"}, "is not known to take it"),
        (tool("web_search"), {"model": "offline"}, "the offline planner cannot use the tool 'web-search'"),
        (tool("memory", per="agent"), {"model": "offline"}, "the offline planner cannot use the tool 'memory'"),
        (
            tool("web_search", response_inclusion="excluded"),
            {"model": "claude-haiku-4-5"},
            "the model 'claude-haiku-4-5' cannot honour response_inclusion",
        ),
        (tool("web_fetch", use_cache=False), {"model": "claude-sonnet-4-5"}, "cannot honour use_cache"),
        (
            tool("web_fetch", url_sources={"client_tool_results": {"only": ["mail"]}}),
            {},
            "names 'mail', which is not one of the agent's tools",
        ),
        (tool("web_search"), {"others": ["second"]}, "models call both 'web-search' and 'second' by the name"),
        (tool("web_search"), {"config": {"tool_search": {}}, "model": "claude-opus-4-1"}, "not known to search"),
        (tool("web_search"), {"others": ["late"]}, "the tool 'late' has defer_loading, so the agent must have"),
    ],
)
def test_agent_is_refused_where_its_model_cannot_honour_a_tool(
    define: Define, agent_with: Any, given: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    define(tool("web_search", "second"))
    define({"kind": "tool", "name": "late", "type": "builtin", "builtin": "echo", "defer_loading": True})
    with pytest.raises(InvalidDefinition, match=fault):
        agent_with(given, **fields)


@pytest.mark.parametrize(
    ("definition", "fault"),
    [
        ({"type": "web_search", "description": "Searches"}, "must not have description: the API defines it"),
        ({"type": "code_execution", "approval": True}, "must not have approval: the API defines it"),
        ({"type": ["web_search"]}, "type: Input must be"),
        ({"type": "memory"}, "type: memory needs `memory:` with its settings"),
        ({"type": "memory", "memory": {"per": "tenant"}, "cache": "1h"}, "must not have cache"),
        ({"type": "web_search", "web_search": {"max_uses": 0}}, "greater than or equal to 1"),
        (
            {"type": "web_search", "web_search": {"allowed_domains": ["a.de"], "blocked_domains": ["b.de"]}},
            "must not both be set",
        ),
        ({"type": "web_search", "web_search": {"allowed_domains": ["https://a.de"]}}, "allowed_domains"),
    ],
)
def test_tool_is_refused_with_settings_that_would_be_ignored(
    define: Define, definition: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidDefinition, match=fault):
        define({"kind": "tool", "name": "tool", **definition})


def test_function_agent_cannot_run_a_tool_of_the_api(define: Define) -> None:
    with pytest.raises(InvalidDefinition, match="is run by a model's API"):
        define(tool("web_search"), {"kind": "agent", "name": "F", "type": "function", "tool": "web-search"})


def test_blocks_go_back_exactly_and_pause_turn_continues(ask: Any, agent_with: Any, tasks: Tasks) -> None:
    agent_with(tool("web_search"), tool("web_fetch"))
    cited = {
        "type": "web_search_result_location",
        "url": NEWS[1],
        "title": NEWS[0],
        "encrypted_index": "Eo8B\u00e4==",
        "cited_text": "Boats \u2603 sink",
    }
    searched = said("I look.", web_search("boats", NEWS), stop_reason="pause_turn")
    fetched = said(web_fetch(NEWS[1], "The page"), web_fetch("https://b.example", error="url_not_accessible"))
    fetched["content"] += [{"type": "text", "text": "They sink.", "citations": [cited]}]
    task, requests = ask(searched, fetched)
    assert task["output"]["content"] == "They sink."
    assert plain(requests[1])[1:] == [{"role": "assistant", "content": searched["content"]}]
    [first, second] = tasks.steps(task["id"])
    assert second["output"]["content"] == fetched["content"]
    assert first["usage"]["web_search_requests"] == 1
    assert second["usage"]["web_fetch_requests"] == 1
    assert first["output"]["server_tool_uses"] == {"web_search": 1}


def test_limit_of_a_task_counts_over_its_turns(ask: Any, agent_with: Any) -> None:
    agent_with(tool("web_search", max_uses=3, max_uses_per_task=4), others=["echo"])
    search = web_search("a", NEWS)
    refused = web_search("b", error="max_uses_exceeded")
    task, requests = ask(
        said(search, web_search("b", NEWS), stop_reason="pause_turn"),
        said(web_search("c", NEWS), refused, stop_reason="pause_turn"),
        said(web_search("d", NEWS), stop_reason="pause_turn"),
        testing.text("Done."),
    )
    assert task["state"] == "succeeded", task["error"]
    offered = [{each["name"]: each.get("max_uses") for each in request["tools"]} for request in requests]
    assert offered == [
        {"web_search": 3, "echo": None},
        {"web_search": 2, "echo": None},
        {"web_search": 1, "echo": None},
        {"echo": None},
    ]


def test_search_that_was_paused_keeps_its_tool(ask: Any, agent_with: Any) -> None:
    agent_with(tool("web_search", max_uses_per_task=1))
    [asked, result] = web_search("boats", NEWS)
    task, requests = ask(said(web_search("a", NEWS), [asked], stop_reason="pause_turn"), said([result], "Found."))
    assert task["state"] == "succeeded", task["error"]
    assert [request["tools"][0]["max_uses"] for request in requests] == [1, 1]


def test_tool_that_was_used_too_often_is_left_out(ask: Any, agent_with: Any) -> None:
    agent_with(tool("web_search", max_uses_per_task=1), others=["echo"])
    found = [web_search(name, NEWS) for name in ("a", "b", "c")]
    _, requests = ask(said(*found, stop_reason="pause_turn"), testing.text("Done."))
    assert [each["name"] for each in requests[1]["tools"]] == ["echo"]


def test_searches_of_a_refused_reply_count(ask: Any, agent_with: Any) -> None:
    agent_with(
        tool("web_search", max_uses_per_task=3),
        model="claude-opus-5-5",
        config={"fallback_models": ["claude-opus-5", "claude-sonnet-5-5"], "tool_choice": {"type": "auto"}},
    )
    searches = [web_search(name, NEWS) for name in ("a", "b")]
    refused = {**said(*searches), **{key: testing.refusal()[key] for key in ("stop_reason", "stop_details")}}
    task, requests = ask(refused, refused, testing.text("Hi."))
    assert task["output"] == {"content": "Hi."}, task["error"]
    assert [request.get("tools", [{}])[0].get("max_uses") for request in requests] == [3, 1, None]
    assert "tool_choice" not in requests[2]


def test_edits_of_the_context_have_the_names_that_the_api_knows(ask: Any, agent_with: Any) -> None:
    edit = {"type": "clear_tool_uses_20250919", "exclude_tools": ["news", "echo"], "clear_tool_inputs": ["notes"]}
    agent_with(
        tool("web_search", "news"),
        tool("memory", "notes", per="agent"),
        others=["echo"],
        config={"context_management": {"edits": [edit]}},
    )
    _, requests = ask(testing.text("Hi."))
    sent = {**edit, "exclude_tools": ["web_search", "echo"], "clear_tool_inputs": ["memory"]}
    assert requests[0]["context_management"] == {"edits": [sent]}


def test_limit_holds_when_the_task_runs_again(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, agent_with: Any
) -> None:
    agent_with(tool("web_search", max_uses_per_task=2), tool("code_execution"), others=["careful"])
    messages_api.script = [
        said(web_search("a", NEWS), web_search("b", NEWS), tool_use(("careful", {}))["content"], container=CONTAINER),
        testing.text("Done."),
    ]
    task = tasks.submit("Agent", "Hello")
    wait_until(
        lambda: inline_worker._round() or tasks.get(task)["wait_reason"] == "approval", "the task waits for approval"
    )
    with transaction() as connection:
        lifecycle.decide(connection, task, "approve", who="test")
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded", tasks.get(task)["error"]
    last = messages_api.requests[-1]
    assert [each["name"] for each in last["tools"]] == ["code_execution", "careful"]
    assert last["container"] == "container_1"


def test_choice_of_a_tool_has_the_name_that_the_api_knows(ask: Any, agent_with: Any) -> None:
    agent_with(tool("web_search", "news"), config={"tool_choice": {"type": "tool", "name": "news"}})
    _, requests = ask(testing.text("Hi."))
    assert requests[0]["tool_choice"] == {"type": "tool", "name": "web_search"}


def test_container_goes_back_with_later_turns(
    ask: Any, agent_with: Any, messages_api: MessagesApi, tasks: Tasks
) -> None:
    agent_with(tool("code_execution"), others=["echo"])
    ran = code_execution("python plot.py", "3\n", files=("file_1",))
    task, requests = ask(
        said(ran, tool_use(("echo", {}))["content"], container=CONTAINER),
        tool_use(("echo", {"n": 2})),
        testing.text("Done."),
    )
    assert task["output"] == {"content": "Done."}, task["error"]
    assert [request.get("container") for request in requests] == [None, "container_1", "container_1"]
    first = tasks.steps(task["id"])[0]
    assert first["output"]["container"].items() > CONTAINER.items()
    assert first["usage"]["code_execution_requests"] == 1
    # Counting takes no container.
    assert all("container" not in counted for counted in messages_api.counted)


def test_expired_container_is_replaced(ask: Any, agent_with: Any, messages_api: MessagesApi) -> None:
    agent_with(tool("code_execution"), others=["echo"])
    messages_api.lost_containers = {"container_1"}
    task, requests = ask(
        said(code_execution("ls"), tool_use(("echo", {}))["content"], container=CONTAINER),
        tool_use(("echo", {"n": 2})),
        testing.text("Done."),
    )
    assert task["output"] == {"content": "Done."}, task["error"]
    # The second turn is refused, and repeated without the container; the third does not send it again.
    assert [request.get("container") for request in requests] == [None, "container_1", None, None]


def test_other_400_about_a_container_less_request_fails_the_task(ask: Any, agent_with: Any) -> None:
    agent_with(tool("code_execution"))
    task, requests = ask(error(400, "invalid_request_error", "container: no such thing"))
    assert (task["state"], len(requests)) == ("failed", 1)


def test_answer_with_cited_pages_is_not_constrained(ask: Any, agent_with: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent_with(tool("web_fetch", citations=True), output_schema=schema)
    task, [request] = ask(testing.text('{"n": 1}'))
    assert (task["output"], "output_config" in request) == ({"n": 1}, False)


def test_answer_after_the_last_cited_page_is_not_constrained(ask: Any, agent_with: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent_with(tool("web_fetch", citations=True, max_uses_per_task=1), output_schema=schema)
    fetched = web_fetch(NEWS[1], "The page")
    fetched[1]["content"]["content"]["citations"] = {"enabled": True}
    task, requests = ask(said(fetched, stop_reason="pause_turn"), testing.text('{"n": 1}'))
    assert task["output"] == {"n": 1}
    assert ["output_config" in request or "tools" in request for request in requests] == [True, False]


def test_deferred_tools_are_found_by_a_search(ask: Any, agent_with: Any, define: Define) -> None:
    define({"kind": "tool", "name": "late", "type": "builtin", "builtin": "echo", "effect": "pure"})
    agent_with(tool("memory", per="agent"), others=["echo", "late"], config={"tool_search": {"loaded": 2}})
    found = said(tool_search("echo things", "late"), tool_use(("late", {"n": 1}))["content"])
    task, requests = ask(found, testing.text("Done."))
    assert task["output"] == {"content": "Done."}, task["error"]
    [search, memory, echo, late] = requests[0]["tools"]
    assert search == {"type": "tool_search_tool_bm25_20251119", "name": "tool_search_tool_bm25"}
    assert [each.get("defer_loading") for each in (memory, echo, late)] == [None, None, True]
    for each in requests[0]["tools"]:
        SDK_TOOL.validate_python(each)
    assert plain(requests[1])[1]["content"] == found["content"]


def test_tool_defers_itself(ask: Any, agent_with: Any) -> None:
    late = {"kind": "tool", "name": "late", "type": "builtin", "builtin": "echo", "defer_loading": True}
    agent_with(late, others=["echo"], config={"tool_search": {"by": "regex"}})
    _, [request] = ask(testing.text("Hi."))
    assert [each["name"] for each in request["tools"]] == ["tool_search_tool_regex", "late", "echo"]
    assert [each.get("defer_loading") for each in request["tools"]] == [None, True, None]


def test_auto_model_that_cannot_honour_a_tool_fails_the_task(
    ask: Any, agent_with: Any, monkeypatch: pytest.MonkeyPatch, messages_api: MessagesApi
) -> None:
    agent_with(tool("web_search"), model="auto")
    monkeypatch.setenv("MINION_DEFAULT_MODEL", "claude-3-5-haiku-latest")
    get_settings.cache_clear()
    task, requests = ask(testing.text("Hi."))
    assert (task["state"], requests) == ("failed", [])
    assert "cannot be sent: the model 'claude-3-5-haiku-latest'" in task["error"]["message"]


def test_searches_are_reserved_and_paid(ask: Any, agent_with: Any, tasks: Tasks) -> None:
    agent_with(tool("web_search", max_uses=3))
    task, _ = ask(said(web_search("a", NEWS), web_search("b", NEWS), "Done."), budget={"dollars": 5.0})
    [step] = tasks.steps(task["id"])
    assert step["cost_microdollars"] >= 20_000
    assert step["usage"]["web_search_requests"] == 2


def test_budget_without_room_for_the_searches_holds_the_call(
    tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, agent_with: Any
) -> None:
    # The tokens of the call and of what it may find cost less than half a dollar.
    agent_with(tool("web_search", max_uses=50), model="claude-haiku-4-5")
    messages_api.script = [testing.text("Hi.")]
    task = tasks.submit("Agent", "Hello", budget={"dollars": 0.9})
    wait_until(lambda: inline_worker._round() or tasks.get(task)["wait_reason"] == "budget", "it waits for its budget")
    assert messages_api.requests == []
