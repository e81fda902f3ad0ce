"""A model call as a step of the journal: paid, so it is committed before its answer is used."""

from __future__ import annotations

from typing import Any

from workers.follower import Follower
from workers.journal import Journal, StepResult
from workers.models import client_for
from workers.models.base import ModelRequest
from workers.models.patience import complete
from workers.task import ClaimedTask


def call_model(journal: Journal, task: ClaimedTask, request: ModelRequest, new: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's reply, made or read back.

    Args:
        new: the messages that the calls before it did not have; the journal keeps these.

    Raises:
        Snoozed: the task is to wait.
        ModelError: the provider refused the request, or has been away for too long.
        MinionError: as for every step.
    """

    def perform(step: int) -> StepResult:
        reply = complete(client_for(request.model), request, journal.known.get(step), Follower(task.id, step))
        return StepResult(
            reply.as_json(),
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            cache_read_tokens=reply.cache_read_tokens,
            cache_write_tokens=reply.cache_write_tokens,
            cost_microdollars=reply.cost_microdollars,
        )

    reply: dict[str, Any] = journal.call("model_call", request.model, {"messages": new}, perform, effect="idempotent")
    return reply
