"""The models of a task: the one that makes its turns, and those that take over.

A model takes over when the one before it refused to answer, or its API has been unavailable for too long, and makes the
rest of the task's turns. Each model that is asked has a separate step, so the journal says which one answered and why
the others did not, and a task that runs again comes to the same model.

The API's own `fallbacks` are not used: they cover refusals only, of some models, at Anthropic's own address, and not in
batches, and a reply then holds the blocks of two models. Here, nothing of a refused reply is used. Thoughts of earlier
turns go back unchanged: a model leaves out those that it cannot read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from shared.contracts.documents import AgentConfig
from shared.contracts.durations import seconds_of
from shared.contracts.strict_json import JsonValue
from shared.contracts.turn_settings import FallbackReason
from shared.errors import ModelError
from workers.journal import Journal
from workers.llm.base import ModelReply, ModelRequest
from workers.llm.patience import Successor
from workers.model_call import call_model
from workers.task import ClaimedTask
from workers.text_stream import TextStream

log = structlog.get_logger(__name__)


class Models:
    """Calls the models of a task.

    Args:
        first: the model that makes the first turn.

    Attributes:
        current: the model that makes the next turn.
    """

    def __init__(self, first: str, config: AgentConfig, task: ClaimedTask, journal: Journal) -> None:
        self.current = first
        self._config = config
        self._task = task
        self._journal = journal
        # `auto` may have selected one of the others.
        self._next = [model for model in config.fallback_models if model != first]
        self.all = (first, *self._next)

    def call(
        self,
        request: ModelRequest,
        asked: dict[str, Any],
        output: Callable[[ModelReply], dict[str, JsonValue]],
        stream: type[TextStream] = TextStream,
    ) -> dict[str, Any]:
        """Return the reply of the first model that gives one, or the last one's refusal. See `call_model`."""
        because: dict[str, JsonValue] = {}

        def to_record(reply: ModelReply) -> JsonValue:
            return {**output(reply), **because}

        while True:
            request = replace(request, model=self.current, other_models=self._others())
            try:
                reply = call_model(
                    self._journal, self._task, request, asked, to_record, stream, successor=self._successor()
                )
            except ModelError as error:
                if error.detail.get("fallback") is None or not self._may_fall_back("unavailable"):
                    raise
                because = {"instead_of": self._replace("unavailable", error.message)}
            else:
                if reply.get("stop_reason") != "refusal" or not self._may_fall_back("refusal"):
                    return reply
                because = {"instead_of": self._replace("refusal", _why_refused(reply))}
            # What is new was in the step before.
            asked = {"messages": [], "instead_of": {name: because["instead_of"][name] for name in ("model", "reason")}}

    def _others(self) -> tuple[str, ...]:
        return tuple(model for model in self.all if model != self.current)

    def _may_fall_back(self, reason: FallbackReason) -> bool:
        return bool(self._next) and reason in self._config.fallback_on

    def _successor(self) -> Successor | None:
        if not self._may_fall_back("unavailable"):
            return None
        return Successor(self._next[0], seconds_of(self._config.fallback_after))

    def _replace(self, reason: FallbackReason, message: str) -> dict[str, Any]:
        """Go on to the next model; return which one it replaces, and why."""
        left, self.current = self.current, self._next.pop(0)
        log.debug("model_replaced", model=left, by=self.current, reason=reason)
        return {"model": left, "reason": reason, "message": message}


def _why_refused(reply: dict[str, Any]) -> str:
    details = reply.get("stop_details") or {}
    category = f" ({details['category']})" if details.get("category") else ""
    return f"It refused to answer{category}. {details.get('explanation') or ''}".strip()
