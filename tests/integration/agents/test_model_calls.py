"""Model turns on the wire: streams, thinking, a provider that is away, and several tool calls at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from minions import testing
from minions.testing import MessagesApi, error, tool_use
from orchestrator.explain import explain
from shared.database.connections import transaction
from shared.errors import InvalidDefinition, ModelUnavailable
from shared.settings import get_settings
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.model_client import use_messages_api
from workers.llm import patience

HI = testing.text("Hi.")
THOUGHT = {"type": "thinking", "thinking": "Let me see …", "signature": "c2lnbmVk=="}
HIDDEN = {"type": "redacted_thinking", "data": "ZW5jcnlwdGVk"}
NEW_KIND = {"type": "of_next_year", "inside": {"a": [None, 1]}}


@pytest.fixture
def define_agent(define: Define) -> Any:
    """Defines `Agent` with the tools `act` (of that effect) and `echo`."""

    def make(effect: str = "idempotent", config: Any = None, **fields: Any) -> None:
        define(
            {**ACT, "effect": effect, "input_schema": {"type": "object"}},
            {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
            {
                "kind": "agent",
                "name": "Agent",
                "model": "claude-sonnet-5-5",
                "tools": ["act", "echo"],
                "config": {"capabilities": ["work"], **(config or {})},
                **fields,
            },
        )

    return make


@pytest.fixture
def begin(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task of `Agent` with a script of replies once."""

    def run(*script: dict[str, Any]) -> dict[str, Any]:
        messages_api.script = list(script)
        task = tasks.submit("Agent", "Hello")
        inline_worker._round()
        return tasks.get(task)

    return run


@pytest.fixture
def ask(begin: Any, tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """Runs it until it ends."""

    def run(*script: dict[str, Any]) -> dict[str, Any]:
        task = begin(*script)
        inline_worker.run_all()
        return tasks.get(task["id"])

    return run


def wake(task: dict[str, Any]) -> None:
    """Its time has come."""
    with transaction() as connection:
        connection.execute(text("UPDATE task_status SET due_at = now() WHERE task_id = :id"), {"id": task["id"]})


@pytest.mark.parametrize("streams", [True, False])
def test_blocks_are_returned_to_the_model_unchanged(
    define_agent: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
    database: Engine,
    streams: bool,
) -> None:
    class Gateway(MessagesApi):
        """Answers at once, if it cannot stream."""

        def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            status, reply = super().answer(headers, body)
            body["stream"] = streams
            return status, reply

    call = {"type": "tool_use", "id": "toolu_1", "name": "echo", "input": {"none": None, "deep": [{"x": 2.5}], "e": {}}}
    said = [THOUGHT, HIDDEN, {"type": "text", "text": "Let me see: ä€😀"}, NEW_KIND, call]
    define_agent()
    with use_messages_api(
        Gateway(script=[{"content": said, "stop_reason": "tool_use"}, HI]), monkeypatch
    ) as messages_api:
        task = tasks.submit("Agent", "Hello")
        inline_worker.run_all()
    assert tasks.get(task)["output"] == {"content": "Hi."}
    assert messages_api.requests[1]["messages"][1] == {"role": "assistant", "content": said}
    assert tasks.steps(task)[0]["output"]["content"] == said


def test_tokens_read_from_cache_are_reported(ask: Any, define_agent: Any, tasks: Tasks) -> None:
    define_agent()
    usage = {"input_tokens": 7, "output_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    task = ask({**HI, "usage": usage})
    [step] = tasks.steps(task["id"])
    assert step["usage"] == {
        "input_tokens": 127,
        "output_tokens": 5,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 20,
    }


def test_the_stable_prefix_is_marked_for_the_cache(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(system_prompt="Be brief.")
    ask(tool_use(("echo", {"a": 1}), ("echo", {"a": 2})), tool_use(("echo", {"a": 3})), HI)
    mark = {"type": "ephemeral"}
    for request, ends in zip(messages_api.requests, ([0], [0, 2], [2, 4]), strict=True):
        assert request["system"][-1]["cache_control"] == mark
        blocks = [(place, block) for place, message in enumerate(request["messages"]) for block in message["content"]]
        marked = [place for place, block in blocks if isinstance(block, dict) and block.get("cache_control") == mark]
        # Also where the request before this one ended: a long turn has more blocks than the API looks back.
        assert marked == ends


@pytest.mark.parametrize(
    ("model", "config", "sent"),
    [
        (
            "claude-sonnet-5-5",
            {"thinking": "adaptive", "effort": "low"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        ("claude-haiku-4-5", {"thinking": 2048}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ("claude-sonnet-5-5", {}, {}),
    ],
)
def test_thinking_and_effort(
    ask: Any, define_agent: Any, messages_api: MessagesApi, model: str, config: Any, sent: Any
) -> None:
    define_agent(config=config, model=model)
    ask(HI)
    request = messages_api.requests[0]
    assert {name: request[name] for name in ("thinking", "output_config") if name in request} == sent


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"thinking": 4096}, "max_tokens includes the thinking"),
        ({"thinking": 1000}, "greater than or equal to 1024"),
        ({"thinking": "adaptive", "temperature": 0.5}, "must not have temperature"),
    ],
)
def test_settings_that_no_model_could_honour(define_agent: Any, config: Any, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        define_agent(config=config, model="claude-sonnet-4-5")


def test_a_short_wait_happens_in_place(ask: Any, define_agent: Any, tasks: Tasks, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask(error(529), error(429, headers={"retry-after": "0.1"}), HI)
    assert (task["output"], task["attempts"]) == ({"content": "Hi."}, 0)
    assert len(tasks.executions(task["id"])) == 1
    assert len(messages_api.requests) == 3


def test_a_long_wait_holds_no_worker_and_no_attempt(
    begin: Any,
    define_agent: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    database: Engine,
) -> None:
    define_agent()
    task = begin(error(529, message="slow down", headers={"retry-after": "30"}), HI)
    assert (task["state"], task["wait_reason"], task["attempts"]) == ("waiting", "model_unavailable", 0)
    with database.connect() as connection:
        why = explain(connection, task["id"], lease=10)
        seconds = connection.scalar(text("SELECT extract(epoch FROM due_at - now()) FROM task_status"))
    assert 20 < seconds <= 30
    assert "The Anthropic API answered 529: slow down (tried 1 times)" in why.sentence
    [step] = tasks.steps(task["id"])
    assert (step["status"], step["error"]["tries"], "cost_unknown" in step["error"]) == ("failed", 1, False)
    wake(task)
    inline_worker.run_all()
    assert tasks.get(task["id"])["output"] == {"content": "Hi."}
    assert [each["outcome"] for each in tasks.executions(task["id"])] == ["suspended", "succeeded"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cut": 5}, "lost during the call: peer closed connection"),
        ({"end": 5}, "the stream ended in the middle of the answer"),
        ({"end": 0}, "the stream ended in the middle of the answer"),
        ({"error_after": [4, "overloaded_error", "Overloaded"]}, "answered 529: Overloaded"),
        ({"error_after": [1, "api_error", "Internal"]}, "answered 500: Internal"),
    ],
)
def test_broken_stream_is_retried_and_discarded(
    begin: Any,
    define_agent: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    how: dict[str, Any],
    message: str,
) -> None:
    define_agent()
    task = begin({**tool_use(("act", {"answer": 1}), said="Half an answer"), **how}, HI)
    assert (task["wait_reason"], task["attempts"]) == ("model_unavailable", 0)
    [step] = tasks.steps(task["id"])
    assert message in step["error"]["message"]
    assert step["error"]["cost_unknown"] is True
    wake(task)
    inline_worker.run_all()
    assert tasks.get(task["id"])["output"] == {"content": "Hi."}
    assert [step["kind"] for step in tasks.steps(task["id"])] == ["model_call"]


def test_an_error_in_the_stream_that_is_final(ask: Any, define_agent: Any) -> None:
    define_agent()
    task = ask({**HI, "error_after": [2, "invalid_request_error", "too long"]})
    assert task["error"]["message"] == "The Anthropic API answered 400: too long"


def test_patience_ends(
    begin: Any, define_agent: Any, tasks: Tasks, inline_worker: InlineWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    define_agent()
    task = begin(error(503, headers={"retry-after": "10"}))
    monkeypatch.setenv("MINION_MODEL_PATIENCE_SECONDS", "0")
    get_settings.cache_clear()
    wake(task)
    inline_worker.run_all()
    failed = tasks.get(task["id"])
    assert (failed["state"], failed["error"]["type"], failed["error"]["tries"]) == ("failed", "model_error", 2)
    assert "It was tried 2 times in 0 s (MINION_MODEL_PATIENCE_SECONDS)" in failed["error"]["message"]


@pytest.mark.parametrize(
    ("tries", "asked", "least", "most"),
    [
        (0, None, 0.25, 0.5),
        (3, None, 2, 4),
        (100, None, 150, 300),
        (3, 0.1, 2, 4),
        (0, 40.0, 40, 40),
        (0, 1e6, 3600, 3600),
    ],
)
def test_retry_delay_grows_despite_header(tries: int, asked: float | None, least: float, most: float) -> None:
    failure = ModelUnavailable("Away.", **({} if asked is None else {"retry_after": asked}))
    assert all(least <= patience.delay_after(failure, tries) <= most for _ in range(50))


def test_paused_turn_continues(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask(testing.text("First half,", "pause_turn"), testing.text("second half."))
    assert task["output"] == {"content": "second half."}
    assert [message["role"] for message in messages_api.requests[1]["messages"]] == ["user", "assistant"]


def test_refusal_reports_reason(ask: Any, define_agent: Any) -> None:
    define_agent()
    details = {"type": "refusal", "category": "cyber", "explanation": "That could do harm."}
    task = ask(testing.text("", "refusal", stop_details=details))
    assert task["error"]["message"] == "The model refused to answer (cyber). That could do harm."
    assert task["error"]["stop_reason"] == "refusal"


def test_calls_of_one_turn_are_made_at_once(
    ask: Any, define_agent: Any, messages_api: MessagesApi, tasks: Tasks, tmp_path: Path
) -> None:
    define_agent()
    log = str(tmp_path / "log")
    calls = [("act", {"do": "meet", "calls": 3, "log": log, "answer": number}) for number in range(3)]
    task = ask(tool_use(calls[0], ("echo", {"e": 1}), *calls[1:]), HI)
    assert task["state"] == "succeeded", task["error"]
    results = messages_api.requests[1]["messages"][-1]["content"]
    assert [result["content"] for result in results] == ["0", '{"e": 1}', "1", "2"]
    steps = tasks.steps(task["id"])
    assert [step["number"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["input"]["arguments"].get("answer", "echo") for step in steps[1:5]] == [0, "echo", 1, 2]


def test_calls_of_one_turn_are_capped(
    begin: Any,
    define_agent: Any,
    messages_api: MessagesApi,
    tasks: Tasks,
    inline_worker: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the task runs again, and the setting has changed since."""
    define_agent(effect="idempotent")
    monkeypatch.setenv("MINION_MAX_TOOL_CALLS", "3")
    get_settings.cache_clear()
    calls = [("act", {"answer": number}) for number in range(2)]
    waits = [("act", {"answer": {"$wait": {"signal": "go"}}})]
    task = begin(tool_use(*calls, *waits, *calls), HI)
    assert task["wait_reason"] == "signal"
    monkeypatch.setenv("MINION_MAX_TOOL_CALLS", "100")
    get_settings.cache_clear()
    with transaction() as connection:
        connection.execute(text("SELECT minion_signal(:id, 'go', '1')"), {"id": task["id"]})
    inline_worker.run_all()
    ended = tasks.get(task["id"])
    assert (ended["state"], ended["error"]) == ("succeeded", None)
    results = messages_api.requests[-1]["messages"][-1]["content"]
    assert [result.get("is_error", False) for result in results] == [False] * 3 + [True] * 2
    assert results[3]["content"] == "Not called: 3 calls are the most in one turn."
    assert [step["kind"] for step in tasks.steps(task["id"])] == [
        "model_call",
        *["tool_call"] * 3,
        "wait",
        "model_call",
    ]
    get_settings.cache_clear()


def test_unsafe_calls_are_made_one_after_the_other(ask: Any, define_agent: Any, tmp_path: Path) -> None:
    define_agent(effect="unsafe", config={"retry_backoff": 0.01})
    meeting = {"do": "meet", "calls": 2, "log": str(tmp_path / "log"), "patience": 0.1}
    task = ask(tool_use(("act", meeting), ("act", meeting)), HI)
    # At once they would have met at the first attempt.
    assert (task["state"], task["attempts"]) == ("succeeded", 1)


def test_step_numbers_do_not_depend_on_speed(
    begin: Any, define_agent: Any, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi, tmp_path: Path
) -> None:
    define_agent()
    log = tmp_path / "log"
    calls = [
        ("act", {"do": "sleep", "seconds": 0.2, "log": str(log)}),
        ("act", {"do": "later", "control": {"$snooze": 0}, "log": str(log), "times": 2}),
        ("act", {"answer": {"$wait": {"signal": "go", "seconds": 60}}}),
        ("act", {"answer": {"$wait": {"signal": "on", "seconds": 60}}}),
    ]
    task = begin(tool_use(*calls), HI)
    assert task["wait_reason"] == "snooze"
    wake(task)
    inline_worker._round()
    waiting = tasks.get(task["id"])
    assert waiting["wait_reason"] == "signal"
    for signal in ("on", "go"):
        with transaction() as connection:
            connection.execute(text("SELECT minion_signal(:id, :name, '1')"), {"id": task["id"], "name": signal})
    inline_worker.run_all()
    results = messages_api.requests[-1]["messages"][-1]["content"]
    assert [signal in result["content"] for signal, result in zip(("go", "on"), results[2:], strict=True)] == [
        True,
        True,
    ]
    assert [step["name"] for step in tasks.steps(task["id"])][5:7] == ["go", "on"]
    assert len(messages_api.requests) == 2
    # The first was finished when the second one asked for later, and is not retried.
    assert len(log.read_text().splitlines()) == 1 + 2


def test_model_with_repeated_wrong_calls_is_stopped(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask(tool_use(("nothing", {})))
    assert task["error"]["type"] == "model_error"
    assert (
        "called tools wrongly in 4 turns in a row. The last time: There is no tool named 'nothing'"
        in (task["error"]["message"])
    )
    assert len(messages_api.requests) == 4


def test_a_result_that_is_too_large_is_an_error_of_the_call(
    ask: Any, define_agent: Any, messages_api: MessagesApi
) -> None:
    define_agent()
    ask(tool_use(("echo", {"x": "y" * 300_000})), HI)
    [result] = messages_api.requests[1]["messages"][-1]["content"]
    assert result["is_error"]
    assert "The result has 300,009 characters, and 200,000 is the most." in result["content"]


def test_several_delegations_of_one_turn_are_under_way_together(
    define_agent: Any, define: Define, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define(
        ACT,
        {"kind": "agent", "name": "Helper", "type": "function", "tool": "act", "config": {"capabilities": ["other"]}},
        {"kind": "tool", "name": "help", "type": "agent", "agent": "Helper", "input_schema": {"type": "object"}},
    )
    define_agent(tools=["act", "help"])
    messages_api.script = [tool_use(("help", {"answer": 1}), ("act", {"answer": 2}), ("help", {"answer": 3})), HI]
    task: UUID = tasks.submit("Agent", "Hello")
    inline_worker._round()
    assert [child["state"] for child in tasks.children(task)] == ["pending", "pending"]
    inline_worker.run_all()
    assert [result["content"] for result in messages_api.requests[1]["messages"][-1]["content"]] == ["1", "2", "3"]
