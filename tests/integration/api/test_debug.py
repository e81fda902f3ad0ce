"""The debugger and the past of a task: `minion debug`, `minion why --at`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from minions import Client, testing
from minions.testing import MessagesApi, tool_use
from shared.settings import get_settings
from tests.integration.agents.conftest import TOOLS, plain
from tests.integration.api.conftest import Api, Run, WithKey
from tests.integration.conftest import InlineWorker, Tasks
from tests.support.background_worker import working
from tests.support.terminal import at_terminal

EVIL = "a\x1b]52;c;ZXZpbA==\x07\u202eb"
SCRIPT = [
    tool_use(("act", {"answer": EVIL}), ("act", {"do": "refuse"})),
    tool_use(("echo", {"n": 1})),
    testing.text("Done."),
]


@pytest.fixture
def agent(define: Any) -> str:
    define(
        *TOOLS,
        {
            "kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "system_prompt": "You are brief.",
            "tools": ["echo", "act"], "config": {"capabilities": ["work"]},
        },
    )  # fmt: skip
    return "Agent"


@pytest.fixture
def task(agent: str, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi) -> str:
    """A task with a tool call that failed, which the model recovered from."""
    messages_api.script = list(SCRIPT)
    made = tasks.submit(agent, "Hello")
    inline_worker.run_all()
    assert tasks.get(made)["state"] == "succeeded"
    return str(made)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Lines that a pipe gives to the command."""
    waiting = iter(lines)

    def read(prompt: str) -> str:
        assert prompt == ""
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_request_is_all_that_the_model_saw(run_cli: Run, task: str, messages_api: MessagesApi) -> None:
    shown = json.loads(run_cli("debug", task, "--step", "4", "--show", "request", "--json").out)
    assert shown["step"]["kind"] == "model_call"
    request, sent = shown["request"], messages_api.requests[1]
    assert (request["system"], request["tools"], request["not_known"]) == ("You are brief.", ["echo", "act"], [])
    assert [message["role"] for message in request["messages"]] == [message["role"] for message in sent["messages"]]
    assert request["messages"][-1]["content"][0]["content"] == sent["messages"][-1]["content"][0]["content"] == EVIL
    text = run_cli("debug", task, "--step", "4", "--show", "request").out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(said in text for said in ("You are brief.", "[user]", "[assistant]", "Hello", "u001b]52"))


def test_system_messages_and_the_schema_are_shown_as_sent(
    run_cli: Run, define: Any, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent = {"kind": "agent", "name": "Agent", "model": "claude-opus-5", "system_prompt": "Be brief."}
    define({**agent, "output_schema": schema, "config": {"capabilities": ["work"]}})
    messages_api.script = [testing.text("One."), testing.text('{"n": 1}')]
    roles = ("system", "user", "assistant", "user", "system")
    said = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    task = str(tasks.submit("Agent", messages=said))
    inline_worker.run_all()
    for number, sent in enumerate(messages_api.requests, 1):
        shown = json.loads(run_cli("debug", task, "--step", str(number), "--show", "request", "--json").out)["request"]
        assert shown["system"] == "".join(block["text"] for block in sent["system"])
        assert plain(shown) == plain(sent)
    assert len(messages_api.requests) == 2


def test_program_and_its_calls_are_shown_as_code(
    run_cli: Run, define: Any, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    config = {"capabilities": ["work"], "code_mode": True}
    fields = {"kind": "agent", "name": "Coder", "model": "claude-sonnet-5-5", "tools": ["echo"], "config": config}
    define(*TOOLS, fields)
    code = "said = await echo(n=1)\nreturn said"
    messages_api.script = [tool_use(("run_program", {"code": code})), testing.text("Done.")]
    task = tasks.submit("Coder", "Hello")
    inline_worker.run_all()
    shown = json.loads(run_cli("debug", str(task), "--step", "2", "--show", "request", "--json").out)
    assert shown["request"]["program"] == code
    printed = run_cli("debug", str(task), "--step", "2", "--show", "all").out
    assert "  | said = await echo(n=1)\n  | return said" in printed
    assert ", called in line 1 of the program of step 2)" in run_cli("debug", str(task), "--step", "3").out
    assert "  echo (line 1)" in run_cli("show", str(task)).out


def test_prompt_is_that_of_the_version_that_ran(run_cli: Run, task: str, define: Any) -> None:
    define({"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "system_prompt": "Another."})
    shown = json.loads(run_cli("debug", task, "--step", "1", "--show", "request", "--json").out)["request"]
    assert (shown["system"], shown["tools"], shown["not_known"]) == ("You are brief.", ["echo", "act"], [])


def test_failure_is_the_first_step_that_failed(run_cli: Run, task: str) -> None:
    shown = json.loads(run_cli("debug", task, "--failure", "--json").out)
    assert (shown["step"]["number"], shown["step"]["status"]) == (3, "failed")
    assert shown["usage"]["so_far"]["steps"] == 3
    assert shown["time"]["seconds"] >= 0
    assert "Step 3 of 6: tool_call act, failed" in run_cli("debug", task, "--failure", "--show", "all").out


def test_debugger_walks_by_lines(run_cli: Run, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "1", "", "reply", "p", "p", "99", "what", "f", "l", "why", "diff", "help", "q", "1")
    done = run_cli("debug", task)
    assert done.code == 65  # a command through the pipe failed
    titles = [line.split()[1] for line in done.out.splitlines() if line.startswith("Step ") and " of 6: " in line]
    assert titles == ["3", "1", "2", "2", "1", "3"]
    for said in ("no step before this one", "has no step 99", "'what' is no command", "Nothing was replayed yet"):
        assert said in done.err
    assert "\u202e" not in done.out


def test_debugger_shows_steps_that_are_added_meanwhile(
    run_cli: Run, define: Any, client: Client, inline_worker: InlineWorker, messages_api: MessagesApi, monkeypatch: Any
) -> None:
    agent = {"kind": "agent", "name": "Careful", "model": "claude-sonnet-5-5", "tools": ["careful"]}
    define(*TOOLS, {**agent, "config": {"capabilities": ["work"]}})
    messages_api.script = [tool_use(("careful", {"answer": 1})), testing.text("Done.")]
    task = client.submit("Careful", "Hello").id
    inline_worker.run_due()

    def lines() -> Iterator[str]:
        yield "2"
        client.decide(task, "approve", step=2)
        inline_worker.run_all()
        yield "n"
        yield "refresh"

    waiting = lines()
    monkeypatch.setattr("builtins.input", lambda _: next(waiting, "q"))
    done = run_cli("debug", task)
    assert done.code == 0, done.err
    assert "Step 2 of 2: wait careful" in done.out
    assert "Step 3 of 4: tool_call careful, finished" in done.out
    assert ("New steps: 2." in done.err, "New steps: 0." in done.err) == (True, True)


def test_edit_continues_and_compares(
    run_cli: Run,
    task: str,
    client: Client,
    messages_api: MessagesApi,
    inline_worker: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages_api.script = SCRIPT[1:]
    typed(monkeypatch, "2", 'edit {"better": true}', "reply", "diff")
    with working(inline_worker):
        done = run_cli("debug", task)
    assert done.code == 0, done.err
    made = next(iter(client.tasks(page=1)))
    assert (made.replay_of, made.state) == (task, "succeeded")
    assert [step["copied_from"] for step in client.steps(made.id)][:3] == [task, task, None]
    assert '+  "better": true' in done.out
    assert done.out.count("Differences: ") == 2


def test_masked_payloads_stay_masked(with_key: WithKey, run_cli: Run, task: str, monkeypatch: Any) -> None:
    viewer = with_key("viewer").headers["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("MINION_API_KEY", viewer)
    get_settings.cache_clear()
    done = run_cli("debug", task, "--step", "4", "--show", "all")
    assert done.code == 0, done.err
    assert "Hello" not in done.out
    assert "You are brief." not in done.out


def test_past_names_step_worker_and_what_is_not_known(run_cli: Run, task: str, client: Client) -> None:
    at_step = json.loads(run_cli("why", task, "--at", "3", "--json").out)
    assert (at_step["state"], at_step["facts"]["step"]) == ("running", 3)
    assert "Step 3 (tool_call act) began, failed after" in at_step["sentence"]
    found = client.get(task)
    assert "No worker had claimed it yet" in run_cli("why", task, "--at", found.created_at.isoformat()).out
    assert found.finished_at is not None
    assert "It had ended: succeeded" in run_cli("why", task, "--at", found.finished_at.isoformat()).out
    for wrong, says in (("99", "has no step 99"), ("soon", "--at must be"), ("2020-01-01", "did not exist")):
        refused = run_cli("why", task, "--at", wrong)
        assert (refused.code, says in refused.err) == (65, True)


def test_debugger_at_a_terminal(http_api: Api, task: str) -> None:
    with at_terminal("debug", task, env={"MINION_API_URL": http_api.url}) as terminal:
        terminal.see("(step 3/6, help) ")
        terminal.type("1\n")
        terminal.see("(step 1/6, help) ")
        terminal.type("reply\n")
        shown = terminal.see("\\u001b]52") + terminal.see("(step 1/6, help) ")
        assert "\x1b" not in shown
        terminal.type("\x04")
        assert terminal.ended() == 0
    with at_terminal("debug", task, env={"MINION_API_URL": http_api.url}) as terminal:
        terminal.see("(step 3/6, help) ")
        terminal.interrupt()
        assert terminal.ended() == 130


def test_past_of_a_wait_names_the_approval(
    run_cli: Run, define: Any, tasks: Tasks, inline_worker: InlineWorker, messages_api: MessagesApi
) -> None:
    agent = {"kind": "agent", "name": "Careful", "model": "claude-sonnet-5-5", "tools": ["careful"]}
    define(*TOOLS, {**agent, "config": {"capabilities": ["work"]}})
    messages_api.script = [tool_use(("careful", {"answer": 1}))]
    task = tasks.submit("Careful", "Hello")
    inline_worker.run_due()
    tasks.cancel(task)
    found = json.loads(run_cli("why", str(task), "--at", "2", "--json").out)
    assert (found["state"], found["reason"], found["facts"]["open_steps"]) == ("waiting", "approval", [2])
    assert "It waited for an approval of careful (step 2)." in found["sentence"]


def test_latest_continues_with_the_active_version(
    run_cli: Run,
    task: str,
    client: Client,
    define: Any,
    messages_api: MessagesApi,
    inline_worker: InlineWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "tools": ["echo", "act"]}
    define({**given, "system_prompt": "You are wordy.", "config": {"capabilities": ["work"]}})
    messages_api.script = [testing.text("Many words.")]
    typed(monkeypatch, "6", "latest")
    with working(inline_worker):
        done = run_cli("debug", task)
    assert done.code == 0, done.err
    made = next(iter(client.tasks(page=1)))
    assert (made.replay_of, made.state, made.agent_version) == (task, "succeeded", 2)
    assert "You are wordy." in str(messages_api.requests[-1]["system"])
