"""Agents with a model, against a local server that speaks the Messages API: what goes over the wire and comes back."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from minions import testing
from minions.testing import KEY, MessagesApi, error, tool_use
from shared.contracts.requests import Budget
from shared.database.connections import transaction
from shared.settings import Settings
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks, everything_written, orchestrating
from tests.support.model_client import forget_model_client
from tests.support.processes import killed_on_exit, start_worker, wait_online
from workers import minion

ANSWER = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def define_agent(define: Define) -> Any:
    """Defines `Agent` with the tools `act` and `echo`: `agent(output_schema=…, config={…})`."""

    def make(tools: Any = ("act", "echo"), config: Any = None, effect: str = "idempotent", **fields: Any) -> None:
        values = {"capabilities": ["work"], "retry_backoff": 0.01, "retry_backoff_max": 0.02, **(config or {})}
        define(
            {**ACT, "effect": effect, "description": "Acts", "input_schema": {"type": "object"}},
            {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
            {
                "kind": "agent",
                "name": "Agent",
                "model": "claude-sonnet-5-5",
                "system_prompt": "Be brief.",
                "tools": list(tools),
                "config": values,
                **fields,
            },
        )

    return make


@pytest.fixture
def ask(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task of `Agent` with a script of replies: `ask([reply, …], input)` is the task."""

    def run(script: list[dict[str, Any]], value: Any = "Hello", **fields: Any) -> dict[str, Any]:
        messages_api.script = script
        task = tasks.submit("Agent", None if "messages" in fields else value, **fields)
        inline_worker.run_all()
        return tasks.get(task)

    return run


def unmarked(request: dict[str, Any]) -> list[dict[str, Any]]:
    """A request's messages as the agent has them, without the marks of the prompt cache."""
    return [{**message, "content": _unmarked(message["content"])} for message in request["messages"]]


def _unmarked(content: Any) -> Any:
    if isinstance(content, str):
        return content
    blocks = [{name: value for name, value in block.items() if name != "cache_control"} for block in content]
    return blocks[0]["text"] if [block["type"] for block in blocks] == ["text"] else blocks


def last_said(request: dict[str, Any]) -> Any:
    """The content of a request's last message."""
    return unmarked(request)[-1]["content"]


def test_answer_records_usage(ask: Any, define_agent: Any, tasks: Tasks, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask([testing.text("Hi.")])
    assert (task["state"], task["output"]) == ("succeeded", {"content": "Hi."})
    [execution] = tasks.executions(task["id"])
    assert (execution["input_tokens"], execution["output_tokens"]) == (110, 5)
    [step] = tasks.steps(task["id"])
    assert (step["kind"], step["name"], step["effect"]) == ("model_call", "claude-sonnet-5-5", "idempotent")
    assert step["input"] == {"messages": [{"role": "user", "content": "Hello"}]}


def test_the_request_on_the_wire(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(
        config={"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_tokens": 99}
    )
    ask([testing.text("Hi.")], {"question": "é?"})
    [request] = messages_api.requests
    cached = {"cache_control": {"type": "ephemeral"}}
    assert request == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 99,
        "stream": True,
        "system": [{"type": "text", "text": "Be brief.", **cached}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": '{"question": "é?"}', **cached}]}],
        "tools": [
            {"name": "act", "description": "Acts", "input_schema": {"type": "object"}},
            {"name": "echo", "description": "", "input_schema": {"type": "object"}, **cached},
        ],
        "diagnostics": {"previous_message_id": None},
    }


def test_a_tools_schema_is_that_of_an_object(
    ask: Any, define: Define, define_agent: Any, messages_api: MessagesApi
) -> None:
    define_agent()
    define({**ACT, "description": "Acts", "input_schema": {"properties": {"answer": {}}}})
    assert ask([testing.text("Hi.")])["state"] == "succeeded"
    assert messages_api.requests[0]["tools"][0]["input_schema"] == {"type": "object", "properties": {"answer": {}}}


def test_sampling_goes_to_models_that_take_it(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(tools=(), model="claude-sonnet-4-6", config={"temperature": 0.2})
    ask([testing.text("Hi.")])
    assert messages_api.requests[0]["temperature"] == 0.2
    known = {"model", "max_tokens", "stream", "system", "messages", "diagnostics", "temperature"}
    assert messages_api.requests[0].keys() == known


def test_results_follow_their_calls_in_one_message(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    calls = tool_use(("echo", {"b": 1, "a": [2.5]}), ("act", {"do": "refuse"}), ("nothing", {}), said="Let me see.")
    task = ask([calls, testing.text("Done.")])
    assert task["output"] == {"content": "Done."}
    first, said, results = unmarked(messages_api.requests[1])
    assert first == {"role": "user", "content": "Hello"}
    assert said["role"] == "assistant"
    assert [block["type"] for block in said["content"]] == ["text", "tool_use", "tool_use", "tool_use"]
    assert results["role"] == "user"
    assert [block["type"] for block in results["content"]] == ["tool_result"] * 3
    assert [block["tool_use_id"] for block in results["content"]] == ["toolu_1", "toolu_2", "toolu_3"]
    assert results["content"][0]["content"] == '{"b": 1, "a": [2.5]}'
    assert [block.get("is_error", False) for block in results["content"]] == [False, True, True]
    assert results["content"][1]["content"] == "No, and asking again will not help."
    assert "There is no tool named 'nothing'; there are: act, echo" in results["content"][2]["content"]


def test_invalid_tool_arguments_are_returned_to_the_model(
    ask: Any, define_agent: Any, messages_api: MessagesApi
) -> None:
    define_agent()
    task = ask([tool_use(("act", {"do": "refuse"})), tool_use(("act", {"answer": 1})), testing.text("Done.")])
    assert task["state"] == "succeeded"
    assert messages_api.requests[1]["messages"][-1]["content"][0]["is_error"] is True
    assert messages_api.requests[2]["messages"][-1]["content"][0]["content"] == "1"


def test_a_task_that_runs_again_pays_for_no_turn_twice(
    ask: Any, define_agent: Any, tasks: Tasks, messages_api: MessagesApi, tmp_path: Path
) -> None:
    define_agent()
    log = tmp_path / "log"
    first = tool_use(("echo", {"zz": 1, "b": 2.0, "a": 1e23}), ("act", {"do": "fail", "times": 1, "log": str(log)}))
    task = ask([first, testing.text("Done.")])
    assert (task["state"], task["attempts"], task["error"]) == ("succeeded", 1, None)
    assert len(messages_api.requests) == 2
    assert len(log.read_text().splitlines()) == 2


def test_a_delegation_in_the_middle_of_a_turn(
    ask: Any, define_agent: Any, define: Define, tasks: Tasks, messages_api: MessagesApi
) -> None:
    define(
        ACT,
        {"kind": "agent", "name": "Helper", "type": "function", "tool": "act", "config": {"capabilities": ["other"]}},
        {"kind": "tool", "name": "help", "type": "agent", "agent": "Helper", "input_schema": {"type": "object"}},
    )
    define_agent(tools=("act", "help"))
    answer = {"answer": {"zz": 1, "b": [2.0, 1e22]}}
    calls = tool_use(("act", answer), ("help", answer), ("help", {"do": "refuse"}), ("act", answer))
    task = ask([calls, testing.text("Done.")])
    assert (task["state"], task["error"]) == ("succeeded", None)
    results = messages_api.requests[1]["messages"][-1]["content"]
    assert [result.get("is_error", False) for result in results] == [False, False, True, False]
    assert results[0]["content"] == results[1]["content"] == results[3]["content"]
    assert "The agent 'Helper' failed: No, and asking again" in results[2]["content"]
    assert [child["depth"] for child in tasks.children(task["id"])] == [1, 1]
    assert len(messages_api.requests) == 2


def test_model_receives_outcome_of_interrupted_unsafe_tool(
    define_agent: Any,
    tasks: Tasks,
    inline_worker: InlineWorker,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    define_agent(effect="unsafe")
    messages_api.script = [tool_use(("act", {"answer": 1})), testing.text("I do not know whether it was done.")]
    task = tasks.submit("Agent", "Hello")
    [message] = inline_worker.dispatch()

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("workers.tools.builtin.BuiltinTool._run", die)
        with pytest.raises(KeyboardInterrupt):
            minion.run(task, message.claim, inline_worker.id)
    with inline_worker.engine.begin() as connection:
        connection.execute(text("SELECT minion_release(:t, 1, 'lost', false, '0', '{}')"), {"t": task})
    inline_worker._round()
    assert tasks.get(task)["wait_reason"] == "answer"
    with inline_worker.engine.begin() as connection:
        lifecycle.decide(connection, task, "fail", who="test", reason="I looked")
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    [result] = messages_api.requests[1]["messages"][-1]["content"]
    assert result["is_error"]
    assert "was interrupted and did not happen: I looked" in result["content"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "The Anthropic API refused the key: check ANTHROPIC_API_KEY. It answered 401: scripted"),
        (403, "The Anthropic API refused the key: check ANTHROPIC_API_KEY. It answered 403: scripted"),
        (404, "The Anthropic API does not know the model 'claude-sonnet-5-5'. It answered 404: scripted"),
        (400, "The Anthropic API answered 400: scripted"),
        (402, "The Anthropic API answered 402: scripted"),
        (413, "The Anthropic API answered 413: scripted"),
    ],
)
def test_api_error_text_is_reported(
    ask: Any, define_agent: Any, messages_api: MessagesApi, status: int, message: str
) -> None:
    define_agent(config={"max_attempts": 2})
    task = ask([error(status)])
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")
    assert task["error"]["message"] == message
    assert task["error"]["http_status"] == status
    assert len(messages_api.requests) == 1


def test_a_wrong_key(ask: Any, define_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    define_agent()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-wrong")
    forget_model_client()
    assert "refused the key" in ask([testing.text("Hi.")])["error"]["message"]


@pytest.mark.parametrize("key", [None, ""])
def test_no_key(
    ask: Any, define_agent: Any, monkeypatch: pytest.MonkeyPatch, messages_api: MessagesApi, key: str | None
) -> None:
    define_agent()
    if key is None:
        monkeypatch.delenv("ANTHROPIC_API_KEY")
    else:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    forget_model_client()
    assert "set ANTHROPIC_API_KEY for the workers" in ask([testing.text("Hi.")])["error"]["message"]
    assert messages_api.requests == []


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY} x", f"{KEY}é", f"{KEY}\x7f", " "])
def test_a_key_that_cannot_be_sent(
    ask: Any,
    define_agent: Any,
    monkeypatch: pytest.MonkeyPatch,
    messages_api: MessagesApi,
    database: Engine,
    capsys: Any,
    key: str,
) -> None:
    define_agent()
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    forget_model_client()
    task = ask([testing.text("Hi.")], budget=Budget(tokens=100_000))
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "model_error")
    assert task["error"]["message"].startswith("ANTHROPIC_API_KEY cannot be sent")
    assert task["budget"]["tokens"]["spent"] == 0
    assert messages_api.requests == []
    assert KEY not in everything_written(database, capsys)


@pytest.mark.parametrize("url", ["localhost:8787", "/v1", "ftp://127.0.0.1", "http://[::x]", "http://127.0.0.1:x"])
def test_an_address_that_cannot_be_used(ask: Any, define_agent: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    define_agent()
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    forget_model_client()
    task = ask([testing.text("Hi.")], budget=Budget(tokens=100_000))
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "model_error")
    assert "ANTHROPIC_BASE_URL" in task["error"]["message"]
    assert task["budget"]["tokens"]["spent"] == 0


def test_a_header_that_cannot_be_sent(
    ask: Any, define_agent: Any, monkeypatch: pytest.MonkeyPatch, database: Engine, capsys: Any
) -> None:
    """One that the SDK reads from the environment itself."""
    define_agent()
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-Gateway-Key: t0p-s3cret\x0b.")
    forget_model_client()
    task = ask([testing.text("Hi.")])
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "model_error")
    assert "cannot be sent" in task["error"]["message"]
    assert "t0p-s3cret" not in everything_written(database, capsys)


def test_text_that_cannot_be_stored_in_an_error(ask: Any, define_agent: Any) -> None:
    define_agent()
    task = ask([error(400, message="a\x00b\ud800c")])
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")


def test_no_network(ask: Any, define_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    define_agent()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MINION_MODEL_PATIENCE_SECONDS", "0")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        forget_model_client()
        task = ask([testing.text("Hi.")])
    assert task["error"]["message"].startswith("The Anthropic API cannot be reached:")


@pytest.mark.parametrize(
    ("stop_reason", "message"),
    [
        ("max_tokens", "cut off at max_tokens"),
        ("refusal", "refused to answer"),
        ("model_context_window_exceeded", "context window"),
        ("of_next_year", "its stop reason is 'of_next_year'"),
        ("tool_use", "ended its turn for a tool call"),
    ],
)
def test_a_reply_that_is_no_answer_fails_and_is_paid_for(
    ask: Any, define_agent: Any, tasks: Tasks, stop_reason: str, message: str
) -> None:
    define_agent()
    task = ask([testing.text("Half an", stop_reason)])
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")
    assert message in task["error"]["message"]
    assert tasks.executions(task["id"])[0]["output_tokens"] == 5


def test_structured_output_is_repaired(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(output_schema=ANSWER)
    task = ask([testing.text("One."), testing.text('{"n": "1"}'), testing.text('```json\n{"n": 1}\n```')])
    assert task["output"] == {"n": 1}
    assert "matches this JSON Schema" in messages_api.requests[0]["system"][0]["text"]
    assert "the answer is not valid JSON" in last_said(messages_api.requests[1])
    assert "$.n: '1' is not of type 'integer'" in last_said(messages_api.requests[2])


def test_structured_output_that_cannot_be_repaired(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(output_schema=ANSWER)
    task = ask([testing.text("One.")])
    assert task["error"]["type"] == "invalid_output"
    assert len(messages_api.requests) == 3


@pytest.mark.parametrize("said", ["NaN", '{"n": 1e999}', "[" * 100_000, '{"n": "\\u0000"}', '{"n": "\\ud800"}'])
def test_an_answer_that_is_not_strict_json_is_repaired(ask: Any, define_agent: Any, said: str) -> None:
    define_agent(output_schema={})
    assert ask([testing.text(said), testing.text("1")])["output"] == 1


@pytest.mark.parametrize(
    ("said", "kept"), [("a\x00b", "a\ufffdb"), ("a\ud800b", "a\ufffdb"), ("a\x00b\ud800c", "a\ufffdb\ufffdc")]
)
def test_text_that_cannot_be_stored_is_replaced(
    ask: Any, define_agent: Any, tasks: Tasks, said: str, kept: str
) -> None:
    """The answer is paid for."""
    define_agent()
    with capture_logs() as logs:
        task = ask([testing.text(said)])
    assert (task["state"], task["output"]) == ("succeeded", {"content": kept})
    [execution] = tasks.executions(task["id"])
    assert (execution["output_tokens"], execution["cost_microdollars"]) == (5, 80)
    assert "model_text_replaced" in [entry["event"] for entry in logs]


def test_thinking_with_unstorable_text_is_returned_unchanged(
    ask: Any, define_agent: Any, tasks: Tasks, messages_api: MessagesApi
) -> None:
    """Thoughts are signed: the API takes them back only unchanged."""
    define_agent()
    thought = {"type": "thinking", "thinking": "A zero: \x00.", "signature": "c2lnbmVk=="}
    said = [thought, {"type": "text", "text": "Half: \ud800"}, *tool_use(("echo", {"a": 1}))["content"]]
    task = ask([{"content": said, "stop_reason": "tool_use"}, testing.text("Done.")])
    assert task["state"] == "succeeded", task["error"]
    assert [block["type"] for block in tasks.steps(task["id"])[0]["output"]["content"]] == [
        "thinking",
        "text",
        "tool_use",
    ]
    assert tasks.steps(task["id"])[0]["output"]["content"][0]["thinking"] == "A zero: \ufffd."
    sent = messages_api.requests[1]["messages"][1]["content"]
    assert sent[0] == thought
    assert sent[1]["text"] == "Half: \ufffd"


def test_call_with_unstorable_input_is_repaired(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask([tool_use(("act", {"answer": "\x00"})), testing.text("Done.")])
    assert task["state"] == "succeeded", task["error"]
    assert last_said(messages_api.requests[1])[0]["content"] == "The input of tool 'act' is not valid JSON."


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{"type": "text", "text": " \n"}],
        [{"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk=="}],
    ],
)
def test_an_empty_answer_is_asked_for_once_more(
    ask: Any, define_agent: Any, messages_api: MessagesApi, tasks: Tasks, content: Any
) -> None:
    define_agent()
    empty = {"content": content, "stop_reason": "end_turn"}
    assert ask([empty, testing.text("Hi.")])["output"] == {"content": "Hi."}
    assert [message["role"] for message in messages_api.requests[1]["messages"]] == ["user", "user"]
    assert "is empty" in last_said(messages_api.requests[1])
    messages_api.requests.clear()
    task = ask([empty])
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")
    assert "empty answer" in task["error"]["message"]
    assert len(messages_api.requests) == 2
    assert tasks.executions(task["id"])[0]["output_tokens"] == 10


def test_an_empty_answer(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(output_schema=ANSWER)
    nothing = {"content": [], "stop_reason": "end_turn"}
    assert ask([nothing, testing.text('{"n": 2}')])["output"] == {"n": 2}
    assert all(message["content"] for request in messages_api.requests for message in request["messages"])


def test_turns_are_limited(ask: Any, define_agent: Any) -> None:
    define_agent(config={"max_turns": 3})
    assert "in 3 turns (max_turns)" in ask([tool_use(("echo", {}))])["error"]["message"]


def test_a_conversation_is_remembered(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    ask([testing.text("Hello Ada.")], messages=[{"role": "user", "content": "I am Ada."}], conversation_id="c")
    ask([testing.text("Elsewhere.")], messages=["What?"], conversation_id="other")
    again = ask([testing.text("Ada.")], messages=["Who am I?"], conversation_id="c")
    assert again["state"] == "succeeded"
    assert unmarked(messages_api.requests[-1]) == [
        {"role": "user", "content": "I am Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "Who am I?"},
    ]
    assert len(messages_api.requests[1]["messages"]) == 1


def test_long_conversation_begins_with_user_message(
    ask: Any, define_agent: Any, messages_api: MessagesApi, database: Engine
) -> None:
    define_agent()
    with database.begin() as connection:
        connection.execute(text("INSERT INTO conversations (id) VALUES ('c')"))
        for number in range(101):
            said = {"role": "assistant" if number % 2 else "user", "content": '"x"' if number else '" "'}
            connection.execute(
                text("INSERT INTO messages (conversation_id, role, content) VALUES ('c', :role, :content)"), said
            )
    ask([testing.text("Hi.")], messages=["Hello"], conversation_id="c")
    said = unmarked(messages_api.requests[0])
    assert said[0]["role"] == "user"
    assert all(message["content"].strip() for message in said)
    assert 95 < len(said) <= 101


def test_system_messages_further_down_keep_their_place(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(model="claude-opus-5-5")
    said = [
        {"role": "system", "content": "In French."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Salut"},
        {"role": "user", "content": "And now?"},
        {"role": "system", "content": "In Latin."},
    ]
    task = ask([tool_use(("echo", {"a": 1})), testing.text("Nunc.")], messages=said)
    assert task["output"] == {"content": "Nunc."}
    for request in messages_api.requests:
        assert request["system"][0]["text"] == "Be brief.\n\nIn French."
        assert unmarked(request)[:4] == said[1:]
    assert [message["role"] for message in messages_api.requests[1]["messages"][4:]] == ["assistant", "user"]


def test_system_messages_belong_to_the_system_prompt(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    ask(
        [testing.text("Hi.")],
        messages=[{"role": "system", "content": "In French."}, {"type": "human", "content": "Hi"}],
    )
    assert messages_api.requests[0]["system"][0]["text"] == "Be brief.\n\nIn French."
    assert unmarked(messages_api.requests[0]) == [{"role": "user", "content": "Hi"}]


def test_messages_without_a_word_are_refused(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent()
    task = ask([testing.text("Hi.")], messages=[{"role": "system", "content": "In French."}])
    assert task["error"]["type"] == "invalid_input"
    assert messages_api.requests == []


def test_blank_messages_stay_behind(ask: Any, define_agent: Any, messages_api: MessagesApi) -> None:
    define_agent(system_prompt=" ")
    said = [
        {"type": "human", "content": "Hello"},
        {"type": "ai", "content": "", "tool_calls": []},
        {"type": "human", "content": " \n"},
        {"type": "system", "content": "\t"},
    ]
    task = ask([testing.text("Hi.")], messages=said)
    assert (task["state"], task["error"]) == ("succeeded", None)
    assert unmarked(messages_api.requests[0]) == [{"role": "user", "content": "Hello"}]
    assert "system" not in messages_api.requests[0]


@pytest.mark.parametrize(
    "given", [{"value": ""}, {"value": " \n"}, {"messages": [" "]}, {"messages": [{"role": "ai", "content": ""}]}]
)
def test_blank_input_is_refused(ask: Any, define_agent: Any, messages_api: MessagesApi, given: dict[str, Any]) -> None:
    define_agent()
    task = ask([testing.text("Hi.")], **given)
    assert (task["state"], task["error"]["type"]) == ("failed", "invalid_input")
    assert "no text from a person" in task["error"]["message"]
    assert messages_api.requests == []


def test_soft_limit_ends_model_call_before_and_in_stream(
    tasks: Tasks,
    define_agent: Any,
    messages_api: MessagesApi,
    tool_package: Path,
    tmp_path: Path,
    short_leases: Settings,
) -> None:
    define_agent(config={"soft_time_limit": 1, "time_limit": 30, "max_attempts": 1})
    messages_api.script = [testing.text("Late.", seconds=5), testing.text("Slow.", pause=5)]
    worker = start_worker(tmp_path, "work")
    with killed_on_exit(worker), orchestrating(short_leases):
        wait_online(tasks.engine, worker)
        late, slow = (tasks.run("Agent", "Hello") for _ in range(2))
    assert [task["error"]["type"] for task in (late, slow)] == ["time_limit_exceeded"] * 2
    assert len(messages_api.requests) == 2


def test_auto_means_offline_without_a_key(
    tasks: Tasks, inline_worker: InlineWorker, define_agent: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    define_agent(model="auto")
    task: UUID = tasks.submit("Agent", "Echo this")
    inline_worker.run_all()
    assert "not a language model" in tasks.get(task)["output"]["content"]


@pytest.mark.parametrize("approval", [False, True])
def test_a_task_keeps_the_model_that_auto_meant(
    tasks: Tasks,
    inline_worker: InlineWorker,
    define_agent: Any,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
    approval: bool,
) -> None:
    """Also where its journal begins with an approval, and a deployment chooses another model in the meantime."""
    define_agent(model="auto", config={"approval": approval})
    messages_api.script = [tool_use(("act", {"answer": {"$wait": {"signal": "go"}}})), testing.text("Done.")]
    task = tasks.submit("Agent", "Hello")
    inline_worker._round()
    if approval:
        with transaction() as connection:
            lifecycle.decide(connection, task, "approve", who="test")
        inline_worker._round()
    assert tasks.get(task)["wait_reason"] == "signal"
    monkeypatch.setenv("MINION_DEFAULT_MODEL", "claude-opus-4-8")
    forget_model_client()
    with transaction() as connection:
        lifecycle.signal(connection, task, "go", None)
    inline_worker.run_all()
    assert (tasks.get(task)["state"], tasks.get(task)["error"]) == ("succeeded", None)
    assert len({request["model"] for request in messages_api.requests}) == 1
