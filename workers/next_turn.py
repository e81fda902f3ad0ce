"""The probability that a task's next turn begins only after more than five minutes.

The prompt cache forgets a prompt after five minutes, unless a turn pays for an hour. Calls that need an approval, calls
of other agents, and waits are long as a rule.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from shared.contracts.turn_settings import ToolChoice
from workers.journal import Journal
from workers.tools.approval import ApprovedTool
from workers.tools.base import Tool
from workers.tools.delegation import AgentTool


def lateness(tools: Collection[Tool], choice: ToolChoice | None, journal: Journal, turns: int) -> float:
    """Return the probability, from the tools that make a task wait, and its turns so far.

    Args:
        choice: of the tools in the coming turn.
        turns: their number so far.
    """
    if not tools:
        return 0.0
    waiting = [tool.name for tool in tools if isinstance(tool, ApprovedTool | AgentTool)]
    if choice is not None and choice.name is not None:
        return float(choice.name in waiting)
    waits = _waits([journal.known[number]["kind"] for number in sorted(journal.known)])
    return min(1.0, (waits + len(waiting) / len(tools)) / (turns + 1))


def _waits(kinds: Sequence[str]) -> int:
    """Return the number of turns after which the task waited."""
    turns = 0
    waited = True
    for kind in kinds:
        if kind == "model_call":
            waited = False
        elif kind in ("wait", "subtask") and not waited:
            turns, waited = turns + 1, True
    return turns
