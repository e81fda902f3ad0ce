"""The token budget that a model learns for its whole task, so that it can pace itself: `output_config.task_budget`."""

from __future__ import annotations

from typing import Any

from shared.contracts.documents import AgentConfig
from shared.database.connections import persistently
from shared.tasks import budgets
from workers.task import ClaimedTask

LEAST = 20_000
"""The API accepts no smaller budget."""


def task_budget_of(config: AgentConfig, task: ClaimedTask, replies: list[dict[str, Any]]) -> int | None:
    """Return the tokens that are left in the budgets above the task before its first turn. None: it has no budget of
    tokens, or a smaller one than the API accepts, or the model must not learn it.

    It stays the same in all turns, because it is part of the prompt: the reply of the first one records it.
    """
    if not config.task_budget or not task.budget_ids:
        return None
    if replies:
        return replies[0].get("task_budget")
    left = persistently(budgets.remaining_tokens, task.budget_ids)
    return left if left is not None and left >= LEAST else None
