"""Agents that delegate their work to other agents: sequential, parallel, fallback or router.

Sub-agents are tasks on their own capability's queue. The parent waits for them without a slot, and reads their
outcomes from its journal when it runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from shared.contracts import content
from shared.contracts.documents import RelationDefinition
from shared.contracts.strict_json import JsonValue
from shared.database.connections import get_engine, persist
from shared.errors import InvalidInput, MinionError, SubtaskFailed
from shared.tasks.queries import content_of
from shared.tasks.routing import Route, choose
from workers.base import BaseAgent
from workers.model_router import Undecided, choose_by_model
from workers.outcomes import ChildOutcome, Failed, Outcome, Suspended
from workers.steps import StepResult

log = structlog.get_logger(__name__)


class ChainAgent(BaseAgent):
    """Runs an agent's relations by its `chain_strategy`."""

    def input(self) -> JsonValue:
        """The input. Files in messages are refused: to the agents of the chain, they would be a part of a JSON text."""
        if self.task.messages is not None and any(
            next(content.media_in(message.content), None) for message in self.messages()
        ):
            raise InvalidInput(
                f"The chain {self.name!r} gives its agents an input, in which images and documents of messages would "
                'not be seen. Submit an `input` with {"$file": "file_…"}.'
            )
        return super().input()

    def work(self, value: JsonValue) -> Outcome:
        """Advance as far as the finished sub-tasks allow."""
        strategy = self.definition.config.chain_strategy
        return {
            "sequential": self._sequential,
            "parallel": self._parallel,
            "fallback": self._fallback,
            "router": self._router,
        }[strategy](value)

    def _sequential(self, value: JsonValue) -> Outcome:
        """Feed each agent's output to the next one; the last output is the chain's."""
        for relation in self.definition.relations:
            outcomes = self._children(self._requests(relation, value))
            if isinstance(outcomes, Suspended):
                return outcomes
            joined = self._join(outcomes) if relation.for_each else self._single(outcomes[0])
            if isinstance(joined, Failed):
                return joined
            value = joined
        return self.succeed(value)

    def _parallel(self, value: JsonValue) -> Outcome:
        """Run all agents at once on the same input; the output lists their outputs in order."""
        requests = [request for relation in self.definition.relations for request in self._requests(relation, value)]
        outcomes = self._children(requests)
        if isinstance(outcomes, Suspended):
            return outcomes
        joined = self._join(outcomes)
        return joined if isinstance(joined, Failed) else self.succeed(joined)

    def _fallback(self, value: JsonValue) -> Outcome:
        """Return the first success; if there is none, fail with all failures."""
        tried: list[ChildOutcome] = []
        for relation in self.definition.relations:
            outcomes = self._children(self._requests(relation, value))
            if isinstance(outcomes, Suspended):
                return outcomes
            if all(child.succeeded for child in outcomes):
                return self.succeed(self._join(outcomes) if relation.for_each else outcomes[0].output)
            tried += outcomes
        joined = self._join(tried)
        return joined if isinstance(joined, Failed) else self.succeed(joined)

    def _router(self, value: JsonValue) -> Outcome:
        """Run one of the agents, chosen by a model or by the words of the input; the choice is a separate step."""
        names = [relation.agent for relation in self.definition.relations]
        decide = self._decision(names, value)
        chosen = self.journal.call(
            "tool_call", "router", {"among": names}, decide, effect="idempotent", outside="nothing"
        )
        outcomes = self.journal.children([(chosen["agent"], value)])
        if isinstance(outcomes, Suspended):
            return outcomes
        result = self._single(outcomes[0])
        return result if isinstance(result, Failed) else self.succeed(result)

    def _children(self, requests: Sequence[tuple[str, JsonValue]]) -> list[ChildOutcome] | Suspended:
        """Sub-tasks, `max_parallel` of them at a time."""
        outcomes: list[ChildOutcome] = []
        for begin in range(0, len(requests), self.definition.config.max_parallel):
            more = self.journal.children(requests[begin : begin + self.definition.config.max_parallel])
            if isinstance(more, Suspended):
                return more
            outcomes += more
        return outcomes

    def _decision(self, names: list[str], value: JsonValue) -> Callable[[int], StepResult]:
        """Return the step that chooses an agent and records how the choice was made."""
        why_not: dict[str, Any] = {}
        if self.definition.config.router_model is not None:
            try:
                chosen = choose_by_model(self.definition.config, self.task, self.journal, names, value)
                return lambda step: StepResult({"by": "model", **chosen})
            except Undecided as undecided:
                log.warning("routed_by_text", why=str(undecided))
                why_not = {"not_by_model": str(undecided)}

        def rank() -> Route:
            with get_engine().connect() as connection:
                return choose(connection, content_of(value), namespace=self.task.namespace, among=names)

        return lambda step: StepResult({**persist(rank).as_json(), **why_not})

    def _requests(self, relation: RelationDefinition, value: JsonValue) -> list[tuple[str, JsonValue]]:
        if relation.for_each is None:
            return [(relation.agent, value)]
        items = value.get(relation.for_each) if isinstance(value, dict) else None
        if not isinstance(items, list):
            raise InvalidInput(
                f"{self.name!r} runs {relation.agent!r} for each element of {relation.for_each!r}, "
                "and its input has no list of that name."
            )
        return [(relation.agent, item) for item in items]

    def _single(self, child: ChildOutcome) -> JsonValue | Failed:
        if child.succeeded:
            return child.output
        if self.definition.config.on_child_failure == "collect":
            return _collect(child)
        return Failed(failure_of(child))

    def _join(self, children: list[ChildOutcome]) -> JsonValue | Failed:
        failed = [child for child in children if not child.succeeded]
        if failed and self.definition.config.on_child_failure == "fail":
            return Failed(failure_of(failed[0], others=len(failed) - 1))
        return {"results": [_collect(child) for child in children]}


def failure_of(child: ChildOutcome, others: int = 0) -> MinionError:
    """The parent's error: the first cause, however deep it is nested."""
    error = child.error or {"type": child.state, "message": f"it ended as {child.state}"}
    cause: dict[str, Any] = error.get("cause") or {"task_id": str(child.task_id), "agent": child.agent, "error": error}
    more = f" (and {others} more)" if others else ""
    return SubtaskFailed(f"Sub-task {cause['agent']!r} failed{more}: {cause['error'].get('message')}", cause=cause)


def _collect(child: ChildOutcome) -> dict[str, Any]:
    entry: dict[str, Any] = {"task_id": str(child.task_id), "agent": child.agent, "state": child.state}
    if child.succeeded:
        return {**entry, "output": child.output}
    return {**entry, "input": child.input, "error": child.error}
