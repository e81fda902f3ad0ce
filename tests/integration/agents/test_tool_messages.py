"""Messages of role `tool` that release 0.2 accepted: only a model would answer without them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks

SAID = [{"role": "user", "content": "How warm is it?"}, {"role": "tool", "content": "21 degrees"}]
CONFIG = {"capabilities": ["work"]}
ECHO = {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"}


@pytest.fixture
def accepted(database: Engine, define: Define) -> Any:
    """A task with such a message, as 0.2 accepted it."""
    define(
        ECHO,
        {"kind": "agent", "name": "Echo", "type": "function", "tool": "echo", "config": CONFIG},
        {"kind": "agent", "name": "Model", "model": "claude-sonnet-5-5", "config": CONFIG},
    )

    def accept(agent: str) -> Any:
        with database.begin() as connection:
            return lifecycle.accept(connection, [{"agent": agent, "messages": SAID}])[0].task_id

    return accept


def test_function_receives_accepted_tool_messages(accepted: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = accepted("Echo")
    inline_worker.run_all()
    ended = tasks.get(task)
    assert (ended["state"], ended["output"]) == ("succeeded", {"messages": SAID})


def test_a_model_does_not_answer_without_messages_of_role_tool(
    accepted: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    task = accepted("Model")
    inline_worker.run_all()
    ended = tasks.get(task)
    assert (ended["state"], ended["error"]["type"]) == ("failed", "invalid_input")
    assert ended["error"]["message"].startswith("messages[1]: messages of role 'tool' are not supported yet.")
