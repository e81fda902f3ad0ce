"""A conversation at the terminal: `minion console`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from minions import Client, testing
from minions.testing import MessagesApi, tool_use
from tests.integration.agents.conftest import TOOLS
from tests.integration.api.conftest import Api
from tests.integration.conftest import InlineWorker
from tests.support.background_worker import working
from tests.support.terminal import Terminal, at_terminal

EVIL = "Hello\x1b]0;owned\x07\u202e."


@pytest.fixture
def agent(define: Any, messages_api: MessagesApi) -> str:
    define(
        *TOOLS,
        {
            "kind": "agent", "name": "Agent", "model": "claude-sonnet-5-5", "system_prompt": "You are brief.",
            "tools": ["act", "careful"], "config": {"capabilities": ["work"]},
        },
    )  # fmt: skip
    return "Agent"


@pytest.fixture
def terminal(agent: str, http_api: Api, inline_worker: InlineWorker) -> Iterator[Terminal]:
    env = {"MINION_API_URL": http_api.url}
    with working(inline_worker), at_terminal("console", agent, env=env) as terminal:
        terminal.see("Agent> ")
        yield terminal


def test_words_of_the_model_are_shown_as_text(terminal: Terminal, messages_api: MessagesApi) -> None:
    messages_api.script = [testing.text(EVIL)]
    terminal.type("Hi\n")
    shown = terminal.see("Agent> ")
    assert "Hello\\u001b]0;owned\\u0007\\u202e." in shown
    assert "\x1b" not in shown
    terminal.type("/quit\n")
    assert terminal.ended() == 0


def test_calls_are_decided_in_place(terminal: Terminal, messages_api: MessagesApi, client: Client) -> None:
    messages_api.script = [
        tool_use(("careful", {"answer": 1})),
        tool_use(("careful", {"answer": 2})),
        tool_use(("careful", {"answer": 3})),
        testing.text("Done."),
    ]
    terminal.type("Go\n")
    terminal.see("reject [REASON] or skip> ")
    terminal.type("perhaps\n")
    terminal.see("is none of the choices")
    terminal.see("skip> ")
    terminal.type("approve\n")
    terminal.see("step 3 finished")
    terminal.see("skip> ")
    terminal.type("reject too many\n")
    terminal.see("skip> ")
    terminal.type('edit {"answer": "mine"}\n')
    terminal.see("Done.")
    terminal.see("Agent> ")
    [task] = client.tasks()
    tools = [(s["status"], s["output"]) for s in client.steps(task.id) if s["kind"] == "tool_call"]
    assert tools == [("finished", 1), ("finished", "mine")]


def test_result_and_prompt_are_changed_and_compared(
    terminal: Terminal, messages_api: MessagesApi, client: Client
) -> None:
    script = [tool_use(("act", {"answer": "old"})), testing.text("First.")]
    messages_api.script = list(script)
    terminal.type("Go\n")
    terminal.see("First.")
    messages_api.script = [testing.text("Second.")]
    terminal.type('/edit 2 "new"\n')
    assert '+"new"' in terminal.see("Differences: ")
    assert "new" in str(messages_api.requests[-1]["messages"])
    terminal.see("Agent> ")
    messages_api.script = [testing.text("Third.")]
    terminal.type("/prompt Go further\n")
    assert "Third." in terminal.see("Differences: ")
    assert len(list(client.tasks())) == 3
    terminal.type("/show 1\n")
    assert "Go further" in terminal.see("Third.")


def test_interrupt_leaves_the_task_running(terminal: Terminal, messages_api: MessagesApi, client: Client) -> None:
    messages_api.script = [tool_use(("careful", {"answer": 1})), testing.text("Done.")]
    terminal.type("Go\n")
    terminal.see("skip> ")
    terminal.interrupt()
    terminal.see("continues: /follow shows it again")
    terminal.see("Agent> ")
    assert [task.state for task in client.tasks()] == ["waiting"]
    terminal.type("/follow\n")
    terminal.see("skip> ")
    terminal.type("approve\n")
    terminal.see("Done.")
    terminal.see("Agent> ")
    terminal.type("/show 99\n")
    terminal.see("has no step 99")
