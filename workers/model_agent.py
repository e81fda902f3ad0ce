"""Agent with a model: turns and tool calls until the model has an answer."""

from __future__ import annotations

import hashlib
import json
from itertools import dropwhile, takewhile
from typing import Any

from shared.contracts import final_answer
from shared.contracts.content import Content
from shared.contracts.documents import AgentDefinition
from shared.contracts.json_schema import violations
from shared.contracts.key_order import as_in_jsonb
from shared.contracts.requests import AIMessage, Message
from shared.contracts.sampling import settings_to_send
from shared.contracts.strict_json import JsonValue, parse, stable, whole
from shared.contracts.turn_settings import UserId
from shared.errors import InvalidInput, InvalidOutput, ModelError
from shared.settings import get_settings
from shared.tasks.queries import content_of
from workers.attached import with_citations, with_files_of_input
from workers.base import BaseAgent
from workers.code_mode.tool import ProgramTool
from workers.compaction import after_compaction
from workers.conversation import history
from workers.fallback import Models
from workers.journal import Journal
from workers.llm import resolve
from workers.llm.base import ModelReply, ModelRequest, exact_content, json_in, text_in
from workers.next_turn import lateness
from workers.offered_tools import OfferedTools, api_tool_of
from workers.outcomes import Outcome, Succeeded, Suspended
from workers.task import ClaimedTask
from workers.task_budget import task_budget_of
from workers.tool_calls import ToolCalls
from workers.tools.base import Tool

MAX_REPAIRS = 2
MAX_EMPTY = 1
# Stop reasons of a long turn, and of a turn in which the API compacted the conversation.
PAUSES = frozenset({"pause_turn", "compaction"})
WHOLE = frozenset({"end_turn", "stop_sequence", "tool_use"}) | PAUSES
"""Stop reasons of usable answers. Any other one may come with a partial answer."""
THOUGHTS = frozenset({"thinking", "redacted_thinking"})
FORM = 3
"""Format in which turns are sent. In form 1, which is that of 0.2, a tool's text is sent as JSON, keys are sorted, and
all system messages come first. Up to form 2, no answer is constrained to the output schema, and an input has no files.
A task continues in the form in which it began, because a model's thoughts are bound to the exact words before them.
"""


class ModelAgent(BaseAgent):
    """Runs model turns and the tools that they call."""

    def __init__(
        self, definition: AgentDefinition, task: ClaimedTask, journal: Journal, tools: tuple[Tool, ...]
    ) -> None:
        super().__init__(definition, task, journal)
        self.form = _form(journal)
        self.arranged = stable if self.form == 1 else whole
        self.tools = tools
        self.offered = OfferedTools(definition.config, self._as_offered(tools))
        self.calls = ToolCalls(self.offered.callable, task, journal, self.arranged)

    def _as_offered(self, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        """Return the tools that the model calls. In code mode, its programs call those that the API does not define."""
        settings = self.definition.config.code_mode
        if settings is None:
            return tools
        called = [tool for tool in tools if api_tool_of(tool) is None]
        program = ProgramTool(settings, called, self.journal, self.arranged)
        return (program, *(tool for tool in tools if api_tool_of(tool) is not None))

    def input(self) -> JsonValue:
        """Messages are the model's input; only an input that was submitted is checked against the input schema."""
        return None if self.task.messages is not None else super().input()

    def messages(self) -> list[Message]:
        """The task's messages, without blank ones, which the API refuses."""
        return [message for message in super().messages() if not message.is_blank]

    def work(self, value: JsonValue) -> Outcome:
        """Run turns until the model stops calling tools."""
        models = Models(self._model(), self.definition.config, self.task, self.journal)
        new = [message.model_dump() for message in self._new_messages(value)]
        before = history(self.definition.config, self.task, self.journal, models.current)
        self.journal.joins = True
        messages = [*before, *new]
        repairs = 0
        replies: list[dict[str, Any]] = []
        for _ in range(self.definition.config.max_turns):
            replies.append(reply := self._turn(models, messages, new, value, replies))
            messages += _as_message(reply)
            self.offered.note(reply)
            calls = [block for block in reply["content"] if block["type"] == "tool_use"]
            if not calls:
                # It is paid for, and an outcome can be refused.
                self.journal.commit()
            if calls:
                results = self.calls.make(calls, reply.get("max_calls"))
                if isinstance(results, Suspended):
                    return results
                new = [{"role": "user", "content": results}]
            elif reply["stop_reason"] in PAUSES:
                # The model continues when it receives its own words back.
                new = []
            elif fault := self._fault(reply):
                new = [{"role": "user", "content": self._mend(fault, repairs)}]
                repairs += 1
            else:
                return self._answer(reply, value)
            messages += new
        raise ModelError(
            f"{self.name!r} did not reach an answer in {self.definition.config.max_turns} turns (max_turns)."
        )

    def _model(self) -> str:
        """The model of this task: chosen once, and kept when the task runs again."""
        # An approval may precede the first call.
        called = (str(step["name"]) for step in self.journal.known.values() if step["kind"] == "model_call")
        return next(called, None) or resolve(str(self.definition.model), self.task.namespace)

    def _new_messages(self, value: JsonValue) -> list[Message]:
        """The messages to the agent, and the system messages between them."""
        said = self._messages_to_agent(value)
        if self.task.messages is None or self.form == 1:
            return said
        return [*dropwhile(_is_system, self.messages())]

    def _messages_to_agent(self, value: JsonValue) -> list[Message]:
        """The messages to the agent."""
        if self.task.messages is not None:
            said = [message for message in self.messages() if message.role in ("user", "assistant")]
        else:
            ordered = as_in_jsonb(value) if self.form == 1 else value
            text = value if isinstance(value, str) else json.dumps(ordered, ensure_ascii=False)
            content = text if self.form < 3 else self._with_files(value, text)
            said = [Message(role="user", content=content)] if text.strip() else []
        if not said:
            raise InvalidInput(
                f"{self.name!r} received no text from a person: its `input`, or a user message in its `messages`, "
                "must have text that is not blank."
            )
        return said

    def _with_files(self, value: JsonValue, text: str) -> Content:
        return with_files_of_input(value, text, self.task.namespace, cited=self.definition.config.citations)

    def _turn(
        self,
        models: Models,
        messages: list[dict[str, Any]],
        new: list[dict[str, Any]],
        value: JsonValue,
        replies: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Make one model call. The journal keeps what is new: the task itself holds the system messages.

        Args:
            replies: those of the turns before.
        """
        config = self.definition.config
        tools = self.offered.tools()
        choice = self.offered.choice(tools, is_first=not replies)
        budget = task_budget_of(config, self.task, replies)
        request = ModelRequest(
            model=models.current,
            system=self._system(),
            messages=after_compaction(messages) if config.context_management else messages,
            tools=tools,
            max_tokens=config.max_tokens,
            input=value,
            output_schema=self.definition.output_schema,
            sampling=settings_to_send(config.sampling()),
            thinking=config.thinking,
            effort=config.effort,
            tool_choice=choice,
            stop_sequences=tuple(config.stop_sequences),
            service_tier=config.service_tier,
            user_id=_user_id(config.user_id, self.task),
            betas=tuple(config.betas),
            tool_search=config.tool_search,
            container=self.offered.container(),
            speed=config.speed,
            context_management=config.context_management,
            task_budget=budget,
            diagnosed=True,
            previous_reply=replies[-1].get("id") if replies else None,
            lateness=lateness(self.tools, choice, self.journal, len(replies)),
            constrained=self.form > 2,
            namespace=self.task.namespace,
            results_as_json=self.form == 1,
        )
        asked = {"messages": [message for message in new if message["role"] != "system"]}

        def to_record(reply: ModelReply) -> dict[str, JsonValue]:
            sent = {} if budget is None else {"task_budget": budget}
            return {**reply.as_json(), "form": self.form, **_cap(reply), **sent, **self.offered.used_by(reply)}

        reply = models.call(request, asked, to_record)
        _refuse_unfinished(reply, config.max_tokens)
        # Numbers that are read back from the journal look different; later steps must not depend on that.
        return {**reply, "content": self.arranged(reply["content"])}

    def _system(self) -> str:
        # System messages after the first other message are sent in their positions.
        rules = (filter if self.form == 1 else takewhile)(_is_system, self.messages())
        parts = [self.definition.system_prompt, *(message.text for message in rules)]
        if self.definition.output_schema is not None:
            parts.append(final_answer.instruction(self.definition.output_schema))
        return "\n\n".join(part for part in parts if part.strip())

    def _fault(self, reply: dict[str, Any]) -> str | None:
        """Describe the defect of a final answer: it is empty, or does not match the output schema."""
        schema = self.definition.output_schema
        if schema is None:
            return None if text_in(reply) else "it is empty"
        try:
            faults = violations(schema, parse(json_in(text_in(reply)), what="the answer"))
        except InvalidInput as error:
            return error.message
        return "; ".join(f"{fault['path']}: {fault['message']}" for fault in faults) or None

    def _mend(self, fault: str, repairs: int) -> str:
        """Return the message that asks the model to repair an unusable answer.

        Args:
            repairs: how often it has been asked before.

        Raises:
            ModelError: the answer is empty again.
            InvalidOutput: the answer still does not match the output schema.
        """
        if self.definition.output_schema is None:
            if repairs == MAX_EMPTY:
                raise ModelError(f"The model of {self.name!r} gave an empty answer, and another one when asked again.")
            return "Your answer is empty. Please continue."
        if repairs == MAX_REPAIRS:
            raise InvalidOutput(f"The output of {self.name!r} does not match its schema: {fault}")
        return f"Your answer cannot be used: {fault}. Answer with the JSON only."

    def _answer(self, reply: dict[str, Any], value: JsonValue) -> Succeeded:
        answer = text_in(reply)
        output = with_citations(answer, reply) if self.definition.output_schema is None else json.loads(json_in(answer))
        return Succeeded(output, [*self._messages_to_agent(value), AIMessage(content=content_of(output))])


def _form(journal: Journal) -> int:
    """The form of a task's turns, determined from its first answer."""
    outputs = (step.get("output") for step in journal.known.values() if step["kind"] == "model_call")
    first = next((output for output in outputs if isinstance(output, dict) and "content" in output), None)
    return FORM if first is None else first.get("form", 1)


def _user_id(how: UserId | None, task: ClaimedTask) -> str | None:
    """Return the tenant key as the provider receives it; None if there is none, or the agent does not send it."""
    if how is None or task.key is None:
        return None
    return task.key if how == "tenant" else hashlib.sha256(f"{task.namespace}\0{task.key}".encode()).hexdigest()


def _is_system(message: Message) -> bool:
    return message.role == "system"


def _cap(reply: ModelReply) -> dict[str, int]:
    """The number of a reply's calls to make, if not all of them. It is recorded, because settings may change."""
    limit = get_settings().max_tool_calls
    return {"max_calls": limit} if sum(block["type"] == "tool_use" for block in reply.content) > limit else {}


def _as_message(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert a reply to a message that the API accepts back: the API refuses blank texts, which it may send, and
    messages that contain only thoughts.
    """
    blocks = [block for block in exact_content(reply) if block["type"] != "text" or block["text"].strip()]
    if all(block["type"] in THOUGHTS for block in blocks):
        return []
    return [{"role": "assistant", "content": blocks}]


def _refuse_unfinished(reply: dict[str, Any], max_tokens: int) -> None:
    """Refuse a reply that was cut off or refused: it is not an answer, and its tool calls cannot be trusted."""
    stopped = reply["stop_reason"]
    details = reply.get("stop_details") or {}
    category = f" ({details['category']})" if details.get("category") else ""
    faults = {
        "max_tokens": f"The model's answer was cut off at max_tokens ({max_tokens}); raise it in the agent's config.",
        "model_context_window_exceeded": "The conversation and the answer do not fit into the model's context window.",
        "refusal": f"The model refused to answer{category}. {details.get('explanation') or ''}".strip(),
    }
    if stopped in faults:
        raise ModelError(faults[stopped], stop_reason=stopped)
    if stopped not in WHOLE:
        raise ModelError(
            f"The model's answer cannot be used: its stop reason is {stopped[:100]!r}, which may mean half an answer.",
            stop_reason=stopped[:100],
        )
    if stopped == "tool_use" and not any(block["type"] == "tool_use" for block in reply["content"]):
        raise ModelError("The model ended its turn for a tool call, and made none.", stop_reason=stopped)
