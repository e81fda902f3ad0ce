"""The probability that a task's next turn is late."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from shared.contracts.documents import ToolDefinition
from shared.contracts.turn_settings import ToolChoice
from workers.journal import Journal
from workers.next_turn import lateness
from workers.tools.approval import ApprovedTool
from workers.tools.builtin import BuiltinTool
from workers.tools.delegation import AgentTool

PLAIN = BuiltinTool(ToolDefinition(name="plain", type="builtin", builtin="echo"), uuid4())
APPROVED = ApprovedTool(BuiltinTool(ToolDefinition(name="approved", type="builtin", builtin="echo"), uuid4()), None)
AGENT = AgentTool(ToolDefinition(name="agent", type="agent", agent="A"))


def journal(*kinds: str) -> Journal:
    known: Any = {number: {"kind": kind} for number, kind in enumerate(kinds, 1)}
    return Journal(uuid4(), 1, known)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [((), 0), ((PLAIN,), 0), ((APPROVED,), 1), ((AGENT,), 1), ((PLAIN, APPROVED), 0.5), ((PLAIN, PLAIN, AGENT), 1 / 3)],
)
def test_tools_that_make_a_task_wait_are_expected_to_be_called(tools: Any, expected: float) -> None:
    assert lateness(tools, None, journal(), 0) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "expected"), [("approved", 1.0), ("plain", 0.0)])
def test_forced_tool_decides(name: str, expected: float) -> None:
    choice = ToolChoice(type="tool", name=name)
    assert lateness((PLAIN, APPROVED), choice, journal(), 0) == expected


@pytest.mark.parametrize(
    ("kinds", "turns", "expected"),
    [
        (("model_call", "tool_call", "model_call", "tool_call"), 2, 0),
        (("model_call", "tool_call", "wait", "model_call", "tool_call"), 2, 1 / 3),
        # Several waits after one turn are one.
        (("model_call", "wait", "subtask", "model_call", "wait"), 2, 2 / 3),
        # An approval of the input precedes the first turn.
        (("wait", "model_call"), 1, 0),
    ],
)
def test_turns_so_far_count(kinds: tuple[str, ...], turns: int, expected: float) -> None:
    assert lateness((PLAIN,), None, journal(*kinds), turns) == pytest.approx(expected)
