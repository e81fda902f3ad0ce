"""Features of the Messages API that are not arguments of the SDK's `messages.create`, or need a beta header."""

from __future__ import annotations

from typing import Any

from shared.contracts.model_features import is_fast_by_beta
from shared.storable import storable
from workers.llm.base import ModelRequest

BETA_OF_SPEED = "fast-mode-2026-02-01"
BETA_OF_TASK_BUDGET = "task-budgets-2026-03-13"


def betas_of(request: ModelRequest) -> list[str]:
    """Return the beta headers of a request, each once: the author's, and those that its settings need."""
    betas = [*request.betas]
    if request.context_management is not None:
        betas += request.context_management.betas()
    if request.task_budget is not None:
        betas.append(BETA_OF_TASK_BUDGET)
    if request.speed is not None and is_fast_by_beta(request.model):
        betas.append(BETA_OF_SPEED)
    return [*dict.fromkeys(betas)]


def body_of(request: ModelRequest) -> dict[str, Any]:
    """Return the fields of the body for which the SDK's `create` has no arguments."""
    # Sampling is no longer among them since SDK 2; the models that still accept it read it from the body.
    edits = request.context_management
    return {**request.sampling, **({"context_management": edits.as_sent()} if edits else {})}


def edits_in(message: dict[str, Any]) -> list[Any] | None:
    """Return the edits that the API has made to the conversation, as it reports them."""
    applied = message.get("context_management")
    edits = applied.get("applied_edits") if isinstance(applied, dict) else None
    return storable(edits) if isinstance(edits, list) and edits else None
