"""The same agent with models of all providers: one local server speaks their wire formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from minions import testing
from minions.testing import KEY, MessagesApi, error, tool_use
from orchestrator.explain import explain
from shared.contracts.requests import Budget
from shared.database.connections import transaction
from shared.secret_store import SecretStore, new_key
from shared.settings import Settings, get_settings
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks, everything_written, orchestrating
from tests.support.http_server import answering
from tests.support.model_client import forget_model_client
from tests.support.processes import killed_on_exit, start_worker, wait_online, wait_until
from tests.support.providers import CLAUDE, MODELS, use_providers
from workers.llm import client_for
from workers.llm.accounts import Account
from workers.llm.base import ModelRequest
from workers.llm.failures import Failures
from workers.llm.stream import Unreadable

ANSWER = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
HI = testing.text("Hi.")
KINDS = ("bedrock", "openai")
"""One for each protocol. Tests of the Anthropic API itself are in the other modules."""
WRONG = "sk-wrong-and-secret"


@pytest.fixture(params=MODELS)
def provider(request: pytest.FixtureRequest) -> str:
    """The name of each provider in turn."""
    return str(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a provider of each protocol."""
    return str(request.param)


@pytest.fixture(autouse=True)
def providers(messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with use_providers(messages_api.url, monkeypatch):
        yield


@pytest.fixture
def define_agent(define: Define) -> Any:
    """Defines `Agent` with the tools `act` and `echo`, and a model of this provider."""

    def make(provider: str, config: Any = None, **fields: Any) -> None:
        values = {"capabilities": ["work"], "retry_backoff": 0.01, "retry_backoff_max": 0.02, **(config or {})}
        define(
            {**ACT, "description": "Acts", "input_schema": {"type": "object"}},
            {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
            {
                "kind": "agent",
                "name": "Agent",
                "model": MODELS[provider],
                "system_prompt": "Be brief.",
                "tools": ["act", "echo"],
                "config": values,
                **fields,
            },
        )

    return make


@pytest.fixture
def begin(tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> Any:
    """Runs a task of `Agent` with a script of replies once."""

    def run(*script: dict[str, Any], **fields: Any) -> dict[str, Any]:
        messages_api.script = list(script)
        task = tasks.submit("Agent", "Hello", **fields)
        inline_worker.run_due()
        return tasks.get(task)

    return run


@pytest.fixture
def ask(begin: Any, tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """Runs it until it ends."""

    def run(*script: dict[str, Any], **fields: Any) -> dict[str, Any]:
        task = begin(*script, **fields)
        inline_worker.run_all()
        return tasks.get(task["id"])

    return run


def wake() -> None:
    with transaction() as connection:
        connection.execute(text("UPDATE task_status SET due_at = now()"))


def results(request: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Return the results of tools that a request ends with, by call: the text, and whether it is an error."""
    found = {}
    for message in request["messages"]:
        if message["role"] == "tool":
            found[message["tool_call_id"]] = message["content"], message["content"].startswith("Error: ")
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block["type"] == "tool_result":
                found[block["tool_use_id"]] = block["content"], block.get("is_error", False)
    return found


# ----------------------------------------------------------------------------------------------------- the same for all


def test_turns_and_parallel_calls(provider: str, define_agent: Any, ask: Any, messages_api: MessagesApi) -> None:
    define_agent(provider)
    calls = tool_use(("act", {"answer": "ä😀"}), ("act", {"do": "refuse"}), ("echo", {"x": [None, 2.5]}), said="So:")
    task = ask(calls, testing.text("Done: ä😀"))
    assert (task["state"], task["output"], task["error"]) == ("succeeded", {"content": "Done: ä😀"}, None)
    assert len(messages_api.requests) == 2
    told = results(messages_api.requests[1])
    assert (told["toolu_1"], told["toolu_3"][0]) == (("ä😀", False), '{"x": [null, 2.5]}')
    assert told["toolu_2"][1] is True


def test_usage_has_its_price(provider: str, define_agent: Any, ask: Any, tasks: Tasks) -> None:
    define_agent(provider)
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 2000}
    [step] = tasks.steps(ask({**HI, "usage": usage})["id"])
    assert step["usage"]["input_tokens"] == 3000
    assert (step["usage"]["output_tokens"], step["usage"]["cache_read_input_tokens"]) == (100, 2000)
    listed = {"anthropic": 3200, "foundry": 3200, "vertex": 5100, "bedrock": 5100}
    assert step["cost_microdollars"] == listed.get(provider, 1000 * 2 + 2000 * 1 + 100 * 10)


def test_input_that_is_no_json_returns_to_the_model(
    kind: str, define_agent: Any, ask: Any, messages_api: MessagesApi
) -> None:
    define_agent(kind)
    broken: Any = {"type": "tool_use", "id": "toolu_1", "name": "act", "input": '{"answer": '}
    if kind in CLAUDE:
        broken = {**broken, "input": {"INVALID_JSON": '{"answer": '}}
    task = ask({"content": [broken], "stop_reason": "tool_use"}, HI)
    assert task["state"] == "succeeded"
    assert results(messages_api.requests[1])["toolu_1"][1] is True


def test_answer_is_repaired(kind: str, define_agent: Any, ask: Any, messages_api: MessagesApi) -> None:
    define_agent(kind, output_schema=ANSWER)
    task = ask(testing.text('{"n": "one"}'), testing.text('{"n": 1}'))
    assert task["output"] == {"n": 1}
    assert "cannot be used" in json.dumps(messages_api.requests[1]["messages"][-1])


def test_text_arrives_in_pieces(kind: str, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text("One two three")]
    pieces: list[str] = []
    client = client_for(MODELS[kind])
    client.complete(ModelRequest(MODELS[kind], "", [{"role": "user", "content": "Hi"}], (), 100), pieces.append)
    assert "".join(pieces) == "One two three"
    assert len(pieces) == 3


def test_short_wait_happens_in_place(kind: str, define_agent: Any, ask: Any, messages_api: MessagesApi) -> None:
    define_agent(kind)
    task = ask(error(503), error(429, headers={"retry-after": "0.1"}), HI)
    assert (task["output"], task["attempts"]) == ({"content": "Hi."}, 0)
    assert len(messages_api.requests) == 3


def test_long_wait_holds_no_worker(
    kind: str, define_agent: Any, begin: Any, tasks: Tasks, inline_worker: InlineWorker, database: Engine
) -> None:
    define_agent(kind)
    task = begin(error(529, message="slow down", headers={"retry-after": "30"}), HI)
    assert (task["state"], task["wait_reason"], task["attempts"]) == ("waiting", "model_unavailable", 0)
    with database.connect() as connection:
        assert "answered 529: slow down (tried 1 times)" in explain(connection, task["id"], lease=10).sentence
    wake()
    inline_worker.run_all()
    assert tasks.get(task["id"])["output"] == {"content": "Hi."}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"cut": 3}, "lost during the call"),
        ({"end": 3}, "the stream ended in the middle of the answer"),
        ({"error_after": [2, "rate_limit_error", "Too much"]}, "answered 429: Too much"),
    ],
)
def test_broken_stream_is_retried(
    kind: str, define_agent: Any, begin: Any, tasks: Tasks, inline_worker: InlineWorker, how: Any, message: str
) -> None:
    define_agent(kind)
    task = begin({**tool_use(("act", {"answer": 1}), said="Half an answer"), **how}, HI)
    [step] = tasks.steps(task["id"])
    assert message in step["error"]["message"]
    assert step["error"]["cost_unknown"] is True
    wake()
    inline_worker.run_all()
    assert tasks.get(task["id"])["output"] == {"content": "Hi."}
    assert [step["kind"] for step in tasks.steps(task["id"])] == ["model_call"]


def test_task_that_runs_again_pays_for_no_turn_twice(
    kind: str, define_agent: Any, ask: Any, messages_api: MessagesApi, tmp_path: Path
) -> None:
    define_agent(kind)
    log = tmp_path / "log"
    first = tool_use(("echo", {"b": 2.0}), ("act", {"do": "fail", "times": 1, "log": str(log)}))
    task = ask(first, testing.text("Done."))
    assert (task["state"], task["attempts"], task["error"]) == ("succeeded", 1, None)
    assert len(messages_api.requests) == 2
    assert len(log.read_text().splitlines()) == 2


def test_budget_is_reserved_and_charged(kind: str, define_agent: Any, begin: Any, messages_api: MessagesApi) -> None:
    define_agent(kind, config={"max_tokens": 100})
    task = begin(HI, budget=Budget(dollars=1))
    assert task["state"] == "succeeded"
    assert 0 < task["budget"]["dollars"]["spent"] < 0.001
    assert begin(HI, budget=Budget(dollars=0.0001))["state"] == "waiting"
    assert len(messages_api.requests) == 1


def test_limit_in_headers_is_learned(
    kind: str, define_agent: Any, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    define_agent(kind)
    if kind in CLAUDE:
        told = {f"anthropic-ratelimit-requests-{name}": value for name, value in (("limit", "1"), ("remaining", "0"))}
    else:
        told = {"x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0"}
        told["x-ratelimit-reset-requests"] = "1m0s"
    messages_api.script = [{**HI, "headers": told}]
    for _ in range(2):
        task = tasks.submit("Agent", "Hello")
        inline_worker.run_due()
    assert (tasks.get(task)["wait_reason"], len(messages_api.requests)) == ("model_limit", 1)


@pytest.mark.parametrize(
    ("stop_reason", "message"), [("max_tokens", "cut off at max_tokens"), ("refusal", "refused to answer")]
)
def test_reply_that_is_no_answer_fails(kind: str, define_agent: Any, ask: Any, stop_reason: str, message: str) -> None:
    define_agent(kind)
    task = ask(testing.text("Half an", stop_reason))
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")
    assert message in task["error"]["message"]


def test_later_system_message_arrives(
    provider: str, define_agent: Any, ask: Any, messages_api: MessagesApi, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    define_agent(provider)
    messages_api.script = [HI]
    said = [("user", "One"), ("assistant", "Two"), ("system", "Whisper"), ("user", "Three")]
    task = tasks.submit("Agent", messages=[{"role": role, "content": words} for role, words in said])
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded"
    assert "Whisper" in json.dumps(messages_api.requests[0]["messages"][2:])


def test_operators_price_is_that_of_an_unknown_model(define_agent: Any, ask: Any, tasks: Tasks) -> None:
    define_agent("gateway", model="gateway:of-next-year")
    [step] = tasks.steps(ask({**HI, "usage": {"input_tokens": 1000, "output_tokens": 100}})["id"])
    assert step["cost_microdollars"] == 1000 * 2 + 100 * 10


# ----------------------------------------------------------------------------------------------------- worker processes


def test_soft_limit_ends_call_before_and_in_stream(
    tasks: Tasks,
    define_agent: Any,
    messages_api: MessagesApi,
    tool_package: Path,
    tmp_path: Path,
    short_leases: Settings,
) -> None:
    define_agent("openai", config={"soft_time_limit": 1, "time_limit": 30, "max_attempts": 1})
    messages_api.script = [testing.text("Late.", seconds=5), testing.text("Slow.", pause=5)]
    worker = start_worker(tmp_path, "work")
    with killed_on_exit(worker), orchestrating(short_leases):
        wait_online(tasks.engine, worker)
        late, slow = (tasks.run("Agent", "Hello") for _ in range(2))
    assert [task["error"]["type"] for task in (late, slow)] == ["time_limit_exceeded"] * 2
    assert len(messages_api.requests) == 2


def test_killed_worker_pays_for_no_finished_turn_again(
    tasks: Tasks,
    define_agent: Any,
    messages_api: MessagesApi,
    tool_package: Path,
    tmp_path: Path,
    short_leases: Settings,
) -> None:
    define_agent("openai")
    messages_api.script = [tool_use(("echo", {"x": 1})), testing.text("Never heard.", seconds=30)]
    killed = start_worker(tmp_path, "work")
    with killed_on_exit(killed), orchestrating(short_leases):
        wait_online(tasks.engine, killed)
        task = tasks.submit("Agent", "Hello")
        wait_until(lambda: len(messages_api.requests) == 2, "the second turn")
        killed.kill()
        messages_api.script = [testing.text("Done.")]
        another = start_worker(tmp_path, "work")
        with killed_on_exit(another):
            assert tasks.wait(task)["output"] == {"content": "Done."}
    assert ["tool" in [each["role"] for each in body["messages"]] for body in messages_api.requests] == [
        False,
        True,
        True,
    ]


# ------------------------------------------------------------------------------------------------------ keys, addresses


def test_wrong_key_is_not_quoted(
    provider: str,
    define_agent: Any,
    ask: Any,
    database: Engine,
    messages_api: MessagesApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    define_agent(provider)
    monkeypatch.setenv("ANTHROPIC_API_KEY", WRONG)
    others = [name for name in MODELS if name != "anthropic"]
    with use_providers(messages_api.url, monkeypatch, keys=dict.fromkeys(others, WRONG)), capture_logs() as logs:
        task = ask(HI)
    setting = "ANTHROPIC_API_KEY" if provider == "anthropic" else f"{provider!r} in MINION_PROVIDER_KEYS"
    assert f"refused the key: check {setting}. It answered 401" in task["error"]["message"]
    assert WRONG not in json.dumps([logs, everything_written(database, capsys)], default=str)


def test_key_that_the_api_repeats_is_hidden(
    provider: str, define_agent: Any, ask: Any, database: Engine, capsys: Any
) -> None:
    define_agent(provider)
    task = ask(error(400, "invalid_request_error", f"unexpected Bearer {KEY}"))
    assert "unexpected Bearer ***" in task["error"]["message"]
    assert KEY not in json.dumps(everything_written(database, capsys), default=str)


@pytest.mark.parametrize("before", range(270, 300, 5))
def test_no_part_of_a_key_is_in_a_cut_answer(before: int) -> None:
    provider = get_settings().known_providers()["openai"]
    failures = Failures(Account(provider, KEY, "the test"))
    said = failures.unreadable(Unreadable("x" * before + KEY)).message
    assert KEY[:4] not in said


def test_key_does_not_follow_a_redirect(
    provider: str, define_agent: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.path)
            self.send_response(307)
            self.send_header("location", f"http://localhost:{port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    define_agent(provider)
    with answering(Redirecting) as port:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{port}")
        with use_providers(f"http://127.0.0.1:{port}", monkeypatch):
            task = ask(HI)
    assert "redirects to another address" in task["error"]["message"]
    assert not any("elsewhere" in path for path in seen)


def test_namespace_has_its_own_key(
    provider: str, define_agent: Any, ask: Any, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    define_agent(provider)
    monkeypatch.setenv("MINION_SECRET_KEY", new_key())
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-the-installation")
    with use_providers(messages_api.url, monkeypatch, keys={}):
        with transaction() as connection:
            SecretStore(get_settings()).set(connection, f"provider.{provider}", KEY)
        forget_model_client()
        assert ask(HI)["state"] == "succeeded"
        sent = messages_api.headers[-1]
        assert KEY in (sent.get("x-api-key"), sent.get("authorization", "").removeprefix("Bearer "))


def test_unreadable_key_of_a_namespace_is_not_replaced(
    define_agent: Any, ask: Any, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    define_agent("openai")
    monkeypatch.setenv("MINION_SECRET_KEY", new_key())
    get_settings.cache_clear()
    with transaction() as connection:
        SecretStore(get_settings()).set(connection, "provider.openai", KEY)
    monkeypatch.setenv("MINION_SECRET_KEY", new_key())
    forget_model_client()
    task = ask(HI)
    assert "The key for 'openai' of the namespace 'default' cannot be read" in task["error"]["message"]
    assert messages_api.requests == []


def test_headers_of_the_environment_stay_at_anthropic(
    provider: str, define_agent: Any, ask: Any, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", f"x-private: 1\nAuthorization: Bearer {KEY}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "x-private: 1\nAuthorization: Bearer sk-private")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-private")
    forget_model_client()
    define_agent(provider)
    assert ask(HI)["state"] == "succeeded"
    assert ("x-private" in messages_api.headers[-1]) == (provider == "anthropic")
    assert "private" not in json.dumps(messages_api.headers[-1]).replace("x-private", "")


def test_server_without_a_key_receives_none(
    define_agent: Any, monkeypatch: pytest.MonkeyPatch, ask: Any, messages_api: MessagesApi
) -> None:
    define_agent("own")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-address")
    with use_providers(messages_api.url, monkeypatch, keys={}):
        ask(HI)
    assert "authorization" not in messages_api.headers[-1]


def test_namespace_with_its_own_key_has_no_batches(
    define_agent: Any, begin: Any, ask: Any, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    define_agent("anthropic")
    monkeypatch.setenv("MINION_SECRET_KEY", new_key())
    forget_model_client()
    with transaction() as connection:
        SecretStore(get_settings()).set(connection, "provider.anthropic", KEY)
    refused = begin(HI, lane="batch")
    assert (
        "cannot be made in a batch, which the lane of the task requires: the namespace 'default' has its own key"
        in (refused["error"]["message"])
    )
    assert messages_api.requests == []
    assert ask(HI, lane="auto")["output"] == {"content": "Hi."}
    assert messages_api.batches == {}
