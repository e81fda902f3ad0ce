"""An agent with a model: turns and tool calls until the model has an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import dropwhile
from typing import Any

from sqlalchemy import Row, text

from shared.database import get_engine, persist
from shared.errors import InvalidInput, InvalidOutput, ModelError
from shared.json_schema import violations
from shared.json_values import JsonValue, parse, stable
from shared.sampling import settings_to_send
from shared.schemas import AgentDefinition, AIMessage, Message
from shared.tasks import content_of
from workers.base import BaseAgent
from workers.follower import Follower
from workers.journal import Journal, StepResult
from workers.models import client_for, resolve
from workers.models.base import ModelRequest, ToolSpec
from workers.models.patience import complete
from workers.outcomes import Outcome, Succeeded, Suspended
from workers.task import ClaimedTask
from workers.tool_calls import ToolCalls
from workers.tools.base import Tool

MAX_REPAIRS = 2
MAX_HISTORY = 100

HISTORY = text(
    "SELECT role, content FROM (SELECT id, role, content FROM messages WHERE namespace = :namespace "
    "AND conversation_id = :conversation AND created_at <= :before AND role IN ('user', 'assistant') "
    "ORDER BY id DESC LIMIT :most) latest ORDER BY id"
)


class ModelAgent(BaseAgent):
    """Runs model turns and the tools that they call."""

    def __init__(
        self, definition: AgentDefinition, task: ClaimedTask, journal: Journal, tools: tuple[Tool, ...]
    ) -> None:
        super().__init__(definition, task, journal)
        self.calls = ToolCalls({tool.name: tool for tool in tools}, task, journal)
        self.specs = tuple(
            ToolSpec(tool.name, tool.description, tool.input_schema or {"type": "object"}) for tool in tools
        )

    def input(self) -> JsonValue:
        """Messages are what a model reads; only a task that came with an input is held to the input schema."""
        return None if self.task.messages is not None else super().input()

    def work(self, value: JsonValue) -> Outcome:
        """Turns until the model stops calling tools."""
        model = self._model()
        new = [message.model_dump() for message in self._said(value)]
        messages = [*self._history(), *new]
        repairs = 0
        for _ in range(self.definition.config.max_turns):
            reply = self._turn(model, messages, new, value)
            if reply["content"]:
                messages.append({"role": "assistant", "content": reply["content"]})
            calls = [block for block in reply["content"] if block["type"] == "tool_use"]
            if calls:
                results = self.calls.make(calls)
                if isinstance(results, Suspended):
                    return results
                new = [{"role": "user", "content": results}]
            elif reply["stop_reason"] == "pause_turn":
                # A long turn, which the model goes on with when it gets its own words back.
                new = []
            elif fault := self._fault(reply):
                repairs += 1
                if repairs > MAX_REPAIRS:
                    raise InvalidOutput(f"The output of {self.name!r} does not match its schema: {fault}")
                new = [{"role": "user", "content": f"Your answer cannot be used: {fault}. Answer with the JSON only."}]
            else:
                return self._answer(reply, value)
            messages += new
        raise ModelError(
            f"{self.name!r} did not come to an answer in {self.definition.config.max_turns} turns (max_turns)."
        )

    def _model(self) -> str:
        """The model of this task: chosen once, and kept when the task runs again."""
        first = self.journal.known.get(1)
        return str(first["name"]) if first and first["kind"] == "model_call" else resolve(str(self.definition.model))

    def _said(self, value: JsonValue) -> list[Message]:
        if self.task.messages is not None:
            said = [message for message in self.messages() if message.role in ("user", "assistant")]
            if not said:
                raise InvalidInput(f"The messages for {self.name!r} hold nothing that a person said.")
            return said
        return [
            Message(role="user", content=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        ]

    def _history(self) -> list[dict[str, Any]]:
        """What the conversation held when the task was accepted."""
        if self.task.conversation_id is None:
            return []
        values = {
            "namespace": self.task.namespace,
            "conversation": self.task.conversation_id,
            "before": self.task.created_at or datetime.max,
            "most": MAX_HISTORY,
        }
        said = [{"role": row.role, "content": row.content} for row in persist(lambda: _read(values))]
        # The Messages API wants a conversation that a person begins, and refuses blank text.
        said = [message for message in said if not isinstance(message["content"], str) or message["content"].strip()]
        return list(dropwhile(lambda message: message["role"] != "user", said))

    def _turn(
        self, model: str, messages: list[dict[str, Any]], new: list[dict[str, Any]], value: JsonValue
    ) -> dict[str, Any]:
        """One model call: paid, so it is committed before its answer is used. The journal keeps what is new."""
        config = self.definition.config
        request = ModelRequest(
            model=model,
            system=self._system(),
            messages=messages,
            tools=self.specs,
            max_tokens=config.max_tokens,
            input=value,
            output_schema=self.definition.output_schema,
            sampling=settings_to_send(config.sampling()),
            thinking=config.thinking,
            effort=config.effort,
        )

        def perform(step: int) -> StepResult:
            follower = Follower(self.task.id, step)
            reply = complete(client_for(model), request, self.journal.known.get(step), follower)
            return StepResult(
                reply.as_json(),
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                cache_read_tokens=reply.cache_read_tokens,
                cache_write_tokens=reply.cache_write_tokens,
                cost_microdollars=reply.cost_microdollars,
            )

        reply: dict[str, Any] = self.journal.call("model_call", model, {"messages": new}, perform, effect="idempotent")
        _refuse_unfinished(reply, config.max_tokens)
        # Read back from the journal, keys come in another order; what follows must not depend on it.
        return {**reply, "content": stable(reply["content"])}

    def _system(self) -> str:
        told = [self.definition.system_prompt, *(m.content for m in self.messages() if m.role == "system")]
        if self.definition.output_schema is not None:
            schema = json.dumps(self.definition.output_schema, ensure_ascii=False)
            told.append(f"Give your final answer as JSON that matches this JSON Schema, and nothing else: {schema}")
        return "\n\n".join(part for part in told if part)

    def _fault(self, reply: dict[str, Any]) -> str | None:
        """What is wrong with a final answer, if the agent has an output schema."""
        schema = self.definition.output_schema
        if schema is None:
            return None
        try:
            faults = violations(schema, parse(_json_text(_text(reply)), what="the answer"))
        except InvalidInput as error:
            return error.message
        return "; ".join(f"{fault['path']}: {fault['message']}" for fault in faults) or None

    def _answer(self, reply: dict[str, Any], value: JsonValue) -> Succeeded:
        answer = _text(reply)
        output = {"content": answer} if self.definition.output_schema is None else json.loads(_json_text(answer))
        return Succeeded(output, [*self._said(value), AIMessage(content=content_of(output))])


def _read(values: dict[str, Any]) -> Sequence[Row[Any]]:
    with get_engine().connect() as connection:
        return connection.execute(HISTORY, values).all()


def _refuse_unfinished(reply: dict[str, Any], max_tokens: int) -> None:
    """A reply that was cut off or refused is no answer, and its tool calls are not to be trusted."""
    stopped = reply["stop_reason"]
    details = reply.get("stop_details") or {}
    faults = {
        "max_tokens": f"The model's answer was cut off at max_tokens ({max_tokens}); raise it in the agent's config.",
        "model_context_window_exceeded": "The conversation and the answer do not fit into the model's context window.",
        "refusal": f"The model refused to answer. {details.get('explanation') or ''}".strip(),
    }
    if stopped in faults:
        raise ModelError(faults[stopped], stop_reason=stopped)


def _text(reply: dict[str, Any]) -> str:
    return "".join(block["text"] for block in reply["content"] if block["type"] == "text").strip()


def _json_text(answer: str) -> str:
    """The JSON in an answer that wraps it in a code fence."""
    if answer.startswith("```") and answer.endswith("```"):
        return answer.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return answer
